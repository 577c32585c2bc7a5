"""Tiny models of each architecture, exported: all backends compute the same bits, however it is cut."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from flatlm.export import exporter
from flatlm.export.recipe import RECIPES
from flatlm.export.sources import open_source
from flatlm.runtime.backends import open_backend
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.options import BackendOptions
from tests.tiny_models import tiny_model

LAYER_TYPES = ["sliding_attention", "full_attention"]
SHAPES = {
    "llama": {},
    "qwen2": {"architecture": "qwen2", "heads": 4, "kv_heads": 2},
    "llama_gelu": {"config": {"hidden_act": "gelu_pytorch_tanh"}},
    "mistral": {"architecture": "mistral", "config": {"sliding_window": 6}},
    "mistral_some": {"architecture": "mistral", "config": {"sliding_window": 9, "layer_types": LAYER_TYPES}},
    "qwen3": {"architecture": "qwen3", "heads": 4, "kv_heads": 2},
}
TOKENS, CONTEXT = 40, BackendOptions(ctx=64)
CUTS = ([40], [1] * 40, [33, 7], [5, 19, 16], [8] * 5)


@pytest.mark.parametrize("kv", ["float32", "int8"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_exported_model_gives_the_same_bits_on_every_backend(tmp_path, shape, kv):
    source = open_source(str(tiny_model(tmp_path / "source", **shape)))
    recipe = dataclasses.replace(RECIPES["edge"], windows=2, alphas=(0.5,), kv=kv)
    artifact = open_artifact(
        exporter.export(source, tmp_path / "out", recipe, tell=lambda stage: lambda done, total: None).path
    )
    ids = np.random.default_rng(0).integers(0, artifact.manifest.vocab_size, TOKENS)
    expected = computed(open_backend("numpy", artifact, CONTEXT), ids, [TOKENS])
    assert np.isfinite(expected).all()
    for cut in ([TOKENS], [33, 7]):
        np.testing.assert_array_equal(computed(open_backend("ort", artifact, CONTEXT), ids, cut), expected)
    for threads in (1, 2):
        for cut in CUTS:
            found = computed(NativeBackend(artifact, threads=threads, context=64), ids, cut)
            np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


def computed(backend, ids: np.ndarray, cut: list[int]) -> np.ndarray:
    parts = np.split(ids, np.cumsum(cut)[:-1])
    logits = np.concatenate([backend.forward(part, len(part)) for part in parts])
    backend.close()
    return logits
