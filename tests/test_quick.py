"""Recipe quick: a model in seconds, no text looked at, and every backend still computes the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flatlm.export import exporter
from flatlm.export.archs import architectures
from flatlm.export.recipe import RECIPES
from flatlm.export.sources import open_source
from flatlm.runtime.backends import open_backend
from flatlm.runtime.cli import main
from flatlm.runtime.errors import UsageError
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.options import BackendOptions
from tests.test_model_types import CASES
from tests.tiny_checkpoints import tiny
from tests.tiny_models import tiny_model

BACKENDS = ("native", "numpy", "ort")


def export(source, out, **changes):
    recipe = dataclasses.replace(RECIPES["quick"], **changes)
    return exporter.export(open_source(str(source)), out, recipe, tell=lambda stage: lambda done, total: None)


def logits(path, backend, ids):
    opened = open_backend(backend, open_artifact(path), BackendOptions(ctx=64))
    try:
        return opened.forward(ids, len(ids))
    finally:
        opened.close()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_every_backend_computes_the_same(tmp_path, architecture, tied):
    pytest.importorskip("onnxruntime")
    source = tiny_model(tmp_path / "tiny", architecture=architecture, tied=tied, seed=5, outliers=3)
    path = export(source, tmp_path / "out").path
    ids = np.random.default_rng(0).integers(0, 301, 40)
    native, numpy, ort = (logits(path, backend, ids) for backend in BACKENDS)
    assert np.array_equal(native.view(np.int32), numpy.view(np.int32))
    assert np.array_equal(native, ort)


def test_in_eight_bits_it_is_close_to_the_calibrated_one(tmp_path):
    source = tiny_model(tmp_path / "tiny", seed=5, outliers=3)
    ids = np.random.default_rng(0).integers(0, 301, 40)
    quick = logits(export(source, tmp_path / "quick", weight_bits="8").path, "numpy", ids)
    slow = dataclasses.replace(RECIPES["w8a8"], windows=2, alphas=(0.5,))
    made = exporter.export(
        open_source(str(source)), tmp_path / "w8a8", slow, tell=lambda stage: lambda a, b: None
    )
    calibrated = logits(made.path, "numpy", ids)
    assert np.corrcoef(quick.ravel(), calibrated.ravel())[0, 1] > 0.99


def test_attention_has_eight_bits_and_the_rest_four(tmp_path):
    manifest = export(tiny_model(tmp_path / "tiny"), tmp_path / "out").manifest
    bits = {row["name"].split(".", 2)[-1]: row["bits"] for row in manifest.layers}
    assert bits == {"attention.qkv": 8, "attention.out": 8, "mlp.gate_up": 4, "mlp.down": 4, "head": 8}


def test_the_manifest_says_that_nothing_was_compared(tmp_path, capsys):
    source = tiny_model(tmp_path / "tiny")
    assert main(["export", str(source), str(tmp_path / "out"), "--recipe", "quick"]) == 0
    assert "not compared with the float model" in capsys.readouterr().err
    manifest = open_artifact(tmp_path / "out").manifest
    assert "check" not in manifest.totals and manifest.calibration["tokens"] == 0
    assert main(["info", str(tmp_path / "out")]) == 0
    assert "quick" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weight_bits": "auto"}, "--weight-bits auto"),
        ({"kv": "int8"}, "--kv int8"),
        ({"activations": "static"}, "--activations static"),
        ({"skip": ()}, "a recipe that calibrates"),
    ],
)
def test_what_needs_calibration_is_refused(changes, named):
    with pytest.raises(UsageError, match=named):
        dataclasses.replace(RECIPES["quick"], **changes)


@pytest.mark.parametrize("kind", architectures())
def test_every_architecture_can_be_had_in_seconds(tmp_path, kind):
    changes = next(changes for name, changes in CASES if name == kind)
    path = export(tiny(tmp_path / "source", kind, **changes), tmp_path / "out").path
    ids = np.random.default_rng(0).integers(0, open_artifact(path).manifest.vocab_size, 12)
    native, numpy = logits(path, "native", ids), logits(path, "numpy", ids)
    assert np.isfinite(numpy).all()
    assert np.array_equal(native.view(np.int32), numpy.view(np.int32))
