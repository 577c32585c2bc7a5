"""Every model type: its export computes what the specification does, and all backends the same bits."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from flatlm.export import execute
from flatlm.export.archs import architectures, build_graph
from flatlm.export.recipe import RECIPES
from flatlm.export.sources import open_source
from flatlm.runtime.backends import open_backend
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.options import BackendOptions
from tests.model_types import CASES
from tests.spec.archs import spec
from tests.tiny_checkpoints import tiny, tiny_weights

TOKENS, CONTEXT = 30, BackendOptions(ctx=64)
IDS = [f"{kind}-{i}" for i, (kind, _) in enumerate(CASES)]
ONCE = {kind: (kind, config) for kind, config in reversed(CASES)}.values()


@pytest.mark.parametrize(("kind", "config"), CASES, ids=IDS)
def test_the_float_graph_computes_what_the_specification_does(tmp_path, kind, config):
    folder = tiny(tmp_path, kind, **config)
    ids = np.random.default_rng(3).integers(0, 301, 24)
    given = json.loads((folder / "config.json").read_text())
    expected = spec(given, tiny_weights(given))(ids)
    actual = execute.logits(build_graph(open_source(str(folder))), ids[None])[0]
    assert np.abs(expected).max() > 0.5
    assert np.abs(expected - actual).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("kind", "config"), ONCE, ids=[kind for kind, _ in ONCE])
def test_an_exported_model_gives_the_same_bits_on_every_backend(tmp_path, kind, config):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from flatlm.export import exporter

    source = open_source(str(tiny(tmp_path / "source", kind, **config)))
    recipe = dataclasses.replace(RECIPES["edge"], windows=2, alphas=(0.5,))
    made = exporter.export(source, tmp_path / "out", recipe, tell=lambda stage: lambda done, total: None)
    artifact = open_artifact(made.path)
    ids = np.random.default_rng(0).integers(0, artifact.manifest.vocab_size, TOKENS)
    expected = computed(open_backend("numpy", artifact, CONTEXT), ids, [TOKENS])
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(computed(open_backend("ort", artifact, CONTEXT), ids, [23, 7]), expected)
    for threads, cut in ((1, [TOKENS]), (2, [13, 1, 1, 15])):
        native = NativeBackend(artifact, threads=threads, context=64)
        np.testing.assert_array_equal(computed(native, ids, cut).view(np.int32), expected.view(np.int32))


def computed(backend: Any, ids: np.ndarray, cut: list[int]) -> np.ndarray:
    parts = np.split(ids, np.cumsum(cut)[:-1])
    logits = np.concatenate([backend.forward(part, len(part)) for part in parts])
    backend.close()
    return logits


def test_every_model_type_is_here():
    assert {kind for kind, _ in CASES} == set(architectures())
