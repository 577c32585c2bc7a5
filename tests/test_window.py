"""A window of Attend: kernels and ONNX body give the reference's bits, which is a masked softmax."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flatlm.export.archs import build_graph
from flatlm.export.ops import of
from flatlm.export.sources import open_source
from flatlm.kernels_arm import ops, reference
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.records import record
from flatlm.runtime.errors import FormatError, SourceError
from flatlm.runtime.format.functions import check_graph
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.states.kv_float import FloatCache
from tests.single_ops import run
from tests.tiny_graphs import WINDOW, quantized_graph
from tests.tiny_models import tiny_model


def random_heads(seed: int, m: int, *numbers: int, size: int = 8) -> list[np.ndarray]:
    """float32 [m, n, size] for each n of `numbers`."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((m, number, size)).astype(np.float32) for number in numbers]


@pytest.mark.parametrize("window", [1, 4, 16, 30])
def test_the_reference_is_a_softmax_over_the_last_positions(window):
    q, k, v = (x.astype(np.float64) for x in random_heads(0, 30, 4, 2, 2))
    found = reference.attention(*(x.astype(np.float32) for x in (q[-9:], k, v)), 0.3, window)
    for row in range(9):
        seen = slice(max(0, 30 - 9 + row + 1 - window), 30 - 9 + row + 1)
        for head in range(4):
            scores = k[seen, head // 2] @ q[21 + row, head] * 0.3
            weights = np.exp(scores - scores.max())
            exact = weights / weights.sum() @ v[seen, head // 2]
            np.testing.assert_allclose(found[row, head], exact, rtol=1e-5, atol=1e-6)


def test_a_window_of_all_positions_is_none():
    q, k, v = random_heads(1, 300, 2, 1, 1)
    cache = (*reference.quantize_heads(k), *reference.quantize_heads(v))
    for window in (300, 1 << 30):
        assert np.array_equal(reference.attention(q, k, v, 1, window), reference.attention(q, k, v, 1))
        assert np.array_equal(
            reference.attention_int8(q, *cache, 1, window), reference.attention_int8(q, *cache, 1)
        )


def native(q: np.ndarray, k: np.ndarray, v: np.ndarray, cuts, window: int, threads: int) -> np.ndarray:
    """ATTEND over a cache that holds all k and v, in steps of `cuts` queries → [m, h, d]."""
    (m, heads, size), groups = q.shape, k.shape[1]
    cache = FloatCache(groups, size, m)
    for position in range(m):
        cache.keys[0, :, position // 16, :, position % 16] = k[position]
        cache.values[0, :, position, :size] = v[position]
    rows, out = (np.zeros((m, padded(heads * size, 16) + 16), np.float32) for _ in range(2))
    rows[:, : heads * size] = q.reshape(m, -1)
    scale, at = np.array([size**-0.5], np.float32), 0
    for tokens in cuts:
        one = record(
            ops.ATTEND, A_QKV=rows[at:].ctypes.data, A_STRIDE=rows.strides[0], A_HEADS=heads, A_GROUPS=groups,
            A_SIZE=size, A_FLOATS=scale.ctypes.data, A_OUT=out[at:].ctypes.data, A_OUT_STRIDE=out.strides[0],
            A_WINDOW=window, **cache.fields("A"),
        )  # fmt: skip
        run([one], [(0, tokens, at)], ops.attention_scratch(size, cache.context), threads)
        at += tokens
    return out[:, : heads * size].reshape(q.shape)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.sampled_from([2, 8, 16, 20])),
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(1, 90),
    st.sampled_from([1, 2]),
    st.integers(0, 2**31),
)
@example((2, 3, 16), [40, 1, 8], 16, 2, 0)
@example((1, 9, 8), [33, 7], 1, 1, 1)
def test_the_float_kernel_gives_the_references_bits(shape, cuts, window, threads, seed):
    groups, share, size = shape
    q, k, v = random_heads(seed, sum(cuts), groups * share, groups, groups, size=size)
    found = native(q, k, v, cuts, window, threads)
    expected = reference.attention(q, k, v, size**-0.5, window)
    assert np.array_equal(found.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("state", ["float32", "int8"])
@pytest.mark.parametrize(("tokens", "past", "window"), [(5, 7, 4), (1, 300, 256), (3, 254, 1), (4, 0, 9)])
def test_the_onnx_body_gives_the_references_bits(state, tokens, past, window):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tests.test_functions import call

    q, k, v = random_heads(past, past + tokens, 6, 2, 2)
    q, cache = q[-tokens:], (k, v)
    if state == "int8":
        cache = (*reference.quantize_heads(k), *reference.quantize_heads(v))
    attention = reference.attention_int8 if state == "int8" else reference.attention
    names = [f"present_{part}" for part in ("key", "key_scale", "value", "value_scale")]
    names = names if state == "int8" else names[::2]
    given = {"q": q} | dict(zip(names, (x if x.ndim == 3 else x[..., None] for x in cache), strict=True))
    given = {name: np.ascontiguousarray(x.swapaxes(0, 1)[None]) for name, x in given.items()}
    (y,) = call("Attend", given, scale=0.25, state=state, window=window)
    np.testing.assert_array_equal(y[0], attention(q, *cache, 0.25, window).reshape(tokens, -1))


@pytest.mark.parametrize("window", [1, 20, 128, 200])
def test_export_runs_it_in_blocks_of_queries(window):
    q, k, v = random_heads(3, 300, 4, 2, 2)
    node = Node("Attend", ("q", "k", "v"), ("y",), {"scale": 0.3, "state": "float32", "window": window}, "n")
    run_one = of("Attend").operation(Graph([node]), node)
    (y,) = run_one(*(x.swapaxes(0, 1)[None] for x in (q, k, v)))
    expected = reference.attention(q, k, v, 0.3, window).reshape(300, -1)
    np.testing.assert_allclose(y[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [0, -3, 1 << 31, 2.0, "5"])
def test_a_window_that_is_no_number_of_positions_is_refused(window):
    graph = quantized_graph(0, "float32", "static", "window")
    at = next(i for i, node in enumerate(graph.nodes) if "window" in node.attrs)
    assert graph.nodes[at].attrs["window"] == WINDOW
    graph.nodes[at] = replace(graph.nodes[at], attrs={**graph.nodes[at].attrs, "window": window})
    with pytest.raises(FormatError, match=r"layers.0.attention.attend.*'window'"):
        check_graph(graph)


def windows(folder, **config) -> list[int]:
    """Of the layers of a tiny Mistral."""
    source = open_source(str(tiny_model(folder, architecture="mistral", config=config, context_length=8192)))
    return [int(n.attrs.get("window", 0)) for n in build_graph(source).nodes if n.op == "Attend"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [4096, 4096]),
        ({"sliding_window": None}, [0, 0]),
        ({"sliding_window": 64}, [64, 64]),
        ({"sliding_window": 8192}, [0, 0]),
        ({"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}, [0, 64]),
    ],
)
def test_mistral_has_the_window_that_config_json_says(tmp_path, config, expected):
    assert windows(tmp_path, **config) == expected


def test_mistral_has_a_kind_for_each_layer(tmp_path):
    with pytest.raises(SourceError, match=r"layer_types = .*, expected 2 of them, one for each layer"):
        windows(tmp_path, layer_types=["full_attention"])
