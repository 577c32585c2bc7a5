"""Weights in MXFP4 are read as what they stand for; a checkpoint that is damaged says where."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flatlm.export.archs import build_graph
from flatlm.export.sources import open_source
from flatlm.export.sources.mxfp4 import decoded
from flatlm.runtime.errors import SourceError, UnsupportedError
from tests.tiny_checkpoints import tiny, tiny_config, tiny_weights
from tests.tiny_models import write_safetensors

SIZES = {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 4}
STORED = {"quantization_config": {"quant_method": "mxfp4"}}


def test_a_block_is_numbers_of_four_bits_times_a_power_of_two():
    blocks = np.arange(16, dtype=np.uint8)[None, None] * 17  # each number twice: low bits first
    values = decoded(blocks, np.array([[128]], np.uint8))
    half = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    assert np.array_equal(values[0], 2 * np.repeat(np.concatenate([half, -half]), 2))
    assert np.array_equal(decoded(blocks, np.array([[120]], np.uint8)), values / 256)
    pair = decoded(np.full((1, 1, 16), 0xA1, np.uint8), np.full((1, 1), 127, np.uint8))
    assert pair[0, :2].tolist() == [0.5, -1.0]


def packed(rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Of a weight [E, k, n]."""
    experts, k, n = shape
    blocks = rng.integers(0, 256, (experts, n, k // 32, 16)).astype(np.uint8)
    return {"blocks": blocks, "scales": rng.integers(120, 126, blocks.shape[:-1]).astype(np.uint8)}


@pytest.fixture
def folder(tmp_path):
    """A tiny gpt-oss in MXFP4, and the same in float32."""
    rng, plain = np.random.default_rng(0), tiny(tmp_path / "plain", "gpt_oss", **SIZES)
    stored = tiny(tmp_path / "stored", "gpt_oss", **SIZES, **STORED)
    weights = tiny_weights(tiny_config("gpt_oss", **SIZES))
    small = dict(weights)
    for name in [name for name in weights if name.endswith("_proj") and weights[name].ndim == 3]:
        parts = packed(rng, weights[name].shape)
        weights[name] = decoded(**parts).swapaxes(1, 2)
        del small[name]
        small |= {f"{name}_{part}": array for part, array in parts.items()}
    write_safetensors(plain / "model.safetensors", weights)
    write(stored / "model.safetensors", small)
    return tmp_path


def write(path, tensors) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)


def read(path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def test_the_graph_of_a_packed_checkpoint_is_that_of_the_plain_one(folder):
    plain, stored = (build_graph(open_source(str(folder / name))) for name in ("plain", "stored"))
    assert [node.name for node in plain.nodes] == [node.name for node in stored.nodes]
    for name in plain.constants:
        assert np.array_equal(plain.array(name), stored.array(name)), name


def test_blocks_without_scales_and_of_other_shapes_are_named(folder):
    file, name = folder / "stored" / "model.safetensors", "model.layers.0.mlp.experts.down_proj"
    tensors = read(file)
    scales = tensors.pop(f"{name}_scales")
    write(file, tensors)
    with pytest.raises(SourceError, match=f"{name}_blocks needs {name}_scales, both as U8"):
        open_source(str(folder / "stored"))
    write(file, {**tensors, f"{name}_scales": scales[:, 1:]})
    with pytest.raises(SourceError, match=f"blocks and scales of {name} are .* not of one matrix"):
        open_source(str(folder / "stored"))


def test_other_quantizations_are_refused_as_before(folder):
    config = folder / "stored" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(UnsupportedError, match=r"already quantized .*method awq"):
        open_source(str(folder / "stored"))
