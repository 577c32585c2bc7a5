"""Softcap, slopes and sinks of Attend: kernels and ONNX bodies give the reference's bits, a plain softmax."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from flatlm.export.ops import of
from flatlm.kernels_arm import ops, reference
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.records import record
from flatlm.kernels_arm.reference import Scores
from flatlm.kernels_arm.team import aligned
from flatlm.runtime.errors import FormatError
from flatlm.runtime.format.functions import check_graph
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.widths import check_values
from flatlm.runtime.states.kv_float import FloatCache
from flatlm.runtime.states.kv_int8 import Int8Cache
from tests.single_ops import run
from tests.test_window import random_heads
from tests.tiny_graphs import CONTEXT, quantized_graph

GROUPS, SHARE, SIZE = 2, 3, 12
HEADS = GROUPS * SHARE
SINKS, SLOPES = np.linspace(-2, 5, HEADS, dtype=np.float32), np.linspace(0.01, 0.4, HEADS, dtype=np.float32)
CHOICES = list(itertools.product((0.0, 1.5), (None, SLOPES), (None, SINKS)))[1:]  # the first has none
OPTIONS = [Scores(*chosen) for chosen in CHOICES]
NAMES = ["+".join(np.array(("softcap", "slopes", "sinks"))[[*map(np.any, chosen)]]) for chosen in CHOICES]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=NAMES)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(np.ascontiguousarray(a).view(np.int32), np.ascontiguousarray(b).view(np.int32))


def exact(q, k, v, scale: float, window: int, o: Scores) -> np.ndarray:
    """Of the last len(q) positions, row by row in float64."""
    m, t, out = len(q), len(k), np.zeros(q.shape)
    for row, head in itertools.product(range(m), range(HEADS)):
        at = t - m + row
        seen = np.arange(max(0, at + 1 - window) if window else 0, at + 1)
        scores = k[seen, head // SHARE].astype(np.float64) @ q[row, head] * scale
        if o.softcap:
            scores = o.softcap * np.tanh(scores / o.softcap)
        if o.slopes is not None:
            scores = scores + o.slopes[head] * (seen - at)
        weights = np.exp(scores)
        total = weights.sum() + (np.exp(np.float64(o.sinks[head])) if o.sinks is not None else 0)
        out[row, head] = weights / total @ v[seen, head // SHARE]
    return out


@every_option
@pytest.mark.parametrize("window", [0, 7])
def test_the_reference_is_the_formula(options, window):
    q, k, v = random_heads(0, 40, HEADS, GROUPS, GROUPS, size=SIZE)
    wanted = exact(q[-9:], k, v, 0.8, window, options)
    found = reference.attention(q[-9:], k, v, 0.8, window, options)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    cache = (*reference.quantize_heads(k), *reference.quantize_heads(v))
    np.testing.assert_allclose(
        reference.attention_int8(q[-9:], *cache, 0.8, window, options), wanted, atol=0.05
    )


def test_a_cap_that_nothing_reaches_and_a_sink_below_all_change_nothing():
    q, k, v = random_heads(1, 30, HEADS, GROUPS, GROUPS, size=SIZE)
    plain = reference.attention(q, k, v, 0.3)
    capped = reference.attention(q, k, v, 0.3, options=Scores(softcap=500.0))
    np.testing.assert_allclose(capped, plain, atol=1e-3)
    below = Scores(sinks=np.full(HEADS, -1e4, np.float32), slopes=np.zeros(HEADS, np.float32))
    assert same_bits(reference.attention(q, k, v, 0.3, options=below), plain)


def fields(prefix: str, window: int, o: Scores, keep: list) -> dict[str, int]:
    found = {f"{prefix}_WINDOW": window}
    cap = np.float32(o.softcap)
    arrays = {
        "CAP": np.array([cap, 2 / cap, 2 * cap], np.float32) if o.softcap else None,
        "SINKS": o.sinks,
        "SLOPES": o.slopes,
    }
    for name, array in arrays.items():
        if array is not None:
            keep.append(array)
            found[f"{prefix}_{name}"] = array.ctypes.data
    return found


def native(q, k, v, cuts, window: int, threads: int, o: Scores) -> np.ndarray:
    """ROTATE without a table and ATTEND of rows q, k, v side by side, in steps → [m, h, d]."""
    m, keep = len(q), list[np.ndarray]()
    cache = FloatCache(GROUPS, SIZE, m)
    rows = np.zeros((m, padded((HEADS + 2 * GROUPS) * SIZE, 16) + 16), np.float32)
    rows[:, : (HEADS + 2 * GROUPS) * SIZE] = np.concatenate([q, k, v], 1).reshape(m, -1)
    out, scale, at = np.zeros((m, padded(HEADS * SIZE, 16) + 16), np.float32), np.float32([0.8]), 0
    for tokens in cuts:
        shape = {"STRIDE": rows.strides[0], "HEADS": HEADS, "GROUPS": GROUPS, "SIZE": SIZE}
        given = {"QKV": rows[at:].ctypes.data, **shape}
        append = {f"R_{name}": value for name, value in given.items()} | cache.fields("R")
        attend = {f"A_{name}": value for name, value in given.items()} | cache.fields("A")
        attend |= {
            "A_FLOATS": scale.ctypes.data,
            "A_OUT": out[at:].ctypes.data,
            "A_OUT_STRIDE": out.strides[0],
        }
        attend |= fields("A", window, o, keep)
        records = [record(ops.ROTATE, **append), record(ops.ATTEND, **attend)]
        run(records, [(0, tokens, at)], ops.attention_scratch(SIZE, cache.context), threads)
        at += tokens
    return out[:, : HEADS * SIZE].reshape(q.shape)


def native_int8(q, k, v, cuts, window: int, threads: int, o: Scores) -> np.ndarray:
    m, keep, width = len(q), list[np.ndarray](), padded(SIZE, 16)
    cache = Int8Cache(GROUPS, SIZE, m)
    blocks = cache.context // ops.KV_BLOCK
    rows = np.zeros((m, padded((HEADS + 2 * GROUPS) * SIZE, 16) + 16), np.float32)
    rows[:, : (HEADS + 2 * GROUPS) * SIZE] = np.concatenate([q, k, v], 1).reshape(m, -1)
    out, scale, at = np.zeros((m, padded(HEADS * SIZE, 16) + 16), np.float32), np.float32([0.8]), 0
    queries = aligned(max(cuts) * HEADS * (width + 16))
    parts = aligned(4 * ops.FEW_TOKENS * HEADS * blocks * (width + 16))
    counters = aligned(64 * GROUPS)
    for tokens in cuts:
        given = {
            "I_QKV": rows[at:].ctypes.data, "I_STRIDE": rows.strides[0], "I_HEADS": HEADS, "I_GROUPS": GROUPS,
            "I_SIZE": SIZE, "I_FLOATS": scale.ctypes.data, "I_CONTEXT": cache.context,
            "I_QUERIES": queries.ctypes.data, "I_KEYS": cache.keys.ctypes.data,
            "I_KEY_SCALES": cache.key_scales.ctypes.data, "I_VALUES": cache.values.ctypes.data,
            "I_VALUE_SCALES": cache.value_scales.ctypes.data, "I_OUT": out[at:].ctypes.data,
            "I_OUT_STRIDE": out.strides[0], "I_PARTS": parts.ctypes.data, "I_COUNTERS": counters.ctypes.data,
            **fields("I", window, o, keep),
        }  # fmt: skip
        records = [record(ops.ROTATE8, **given), record(ops.ATTEND8, **given)]
        run(records, [(0, tokens, at)], ops.attention8_scratch(SIZE, cache.context), threads)
        at += tokens
    return out[:, : HEADS * SIZE].reshape(q.shape)


@every_option
@pytest.mark.parametrize(("cuts", "window", "threads"), [([40, 1, 8], 0, 2), ([1, 260, 5], 17, 1)], ids=str)
def test_the_kernels_give_the_references_bits(options, cuts, window, threads):
    q, k, v = random_heads(len(cuts), sum(cuts), HEADS, GROUPS, GROUPS, size=SIZE)
    found = native(q, k, v, cuts, window, threads, options)
    assert same_bits(found, reference.attention(q, k, v, 0.8, window, options))
    cache = (*reference.quantize_heads(k), *reference.quantize_heads(v))
    found = native_int8(q, k, v, cuts, window, threads, options)
    assert same_bits(found, reference.attention_int8(q, *cache, 0.8, window, options))


@every_option
@pytest.mark.parametrize(("tokens", "past", "window"), [(5, 7, 4), (1, 300, 0)])
@pytest.mark.parametrize("state", ["float32", "int8"])
def test_the_onnx_bodies_give_the_references_bits(options, state, tokens, past, window):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tests.test_functions import call

    q, k, v = random_heads(past, past + tokens, HEADS, GROUPS, GROUPS, size=SIZE)
    q, cache = q[-tokens:], (k, v)
    if state == "int8":
        cache = (*reference.quantize_heads(k), *reference.quantize_heads(v))
    attention = reference.attention_int8 if state == "int8" else reference.attention
    names = [f"present_{part}" for part in ("key", "key_scale", "value", "value_scale")]
    names = names if state == "int8" else names[::2]
    given = {"q": q} | dict(zip(names, (x if x.ndim == 3 else x[..., None] for x in cache), strict=True))
    given = {name: np.ascontiguousarray(x.swapaxes(0, 1)[None]) for name, x in given.items()}
    attrs, constants = attributes(options), {name: Tensor.of(x) for name, x in by_head(options).items()}
    attrs |= {"window": window} if window else {}
    (y,) = call("Attend", given, constants, scale=0.8, state=state, **attrs)
    assert same_bits(y[0], attention(q, *cache, 0.8, window, options).reshape(tokens, -1))


def by_head(o: Scores) -> dict[str, np.ndarray]:
    return {name: array for name, array in (("sinks", o.sinks), ("slopes", o.slopes)) if array is not None}


def attributes(o: Scores) -> dict:
    return ({"softcap": o.softcap} if o.softcap else {}) | dict.fromkeys(by_head(o), 1)


def float_node(o: Scores, window: int) -> tuple[Graph, Node]:
    attrs = {"scale": 0.8, "state": "float32", **attributes(o)} | ({"window": window} if window else {})
    node = Node("Attend", ("q", "k", "v", *by_head(o)), ("y",), attrs, "n")
    return Graph([node], {name: Tensor.of(array) for name, array in by_head(o).items()}), node


@every_option
@pytest.mark.parametrize("window", [0, 150])
def test_export_runs_them_in_blocks_of_queries(options, window):
    q, k, v = random_heads(3, 300, HEADS, GROUPS, GROUPS, size=SIZE)
    graph, node = float_node(options, window)
    (y,) = of("Attend").operation(graph, node)(*(x.swapaxes(0, 1)[None].copy() for x in (q, k, v)))
    wanted = reference.attention(q, k, v, 0.8, window, options).reshape(300, -1)
    np.testing.assert_allclose(y[0], wanted, rtol=1e-4, atol=1e-4)


@every_option
def test_the_gradient_is_that_of_finite_differences(options):
    rng = np.random.default_rng(5)
    env = {
        n: rng.standard_normal((2, heads, 9, SIZE))
        for n, heads in zip("qkv", (HEADS, GROUPS, GROUPS), strict=True)
    }
    graph, node = float_node(options, 4)
    towards = rng.standard_normal((1, 2, 9, HEADS * SIZE))
    gradients = of("Attend").backward(graph, node, env, towards)
    for name, gradient in zip("qkv", gradients, strict=True):
        step, moved = 1e-3 * rng.standard_normal(env[name].shape), []
        for sign in (1, -1):
            other = [x + sign * step if key == name else x for key, x in env.items()]
            # float32 results: sums of differences of many elements
            (y,) = of("Attend").operation(graph, node)(*other)
            moved.append(float(np.vdot(towards, y)))
        assert np.vdot(gradient, step) == pytest.approx((moved[0] - moved[1]) / 2, rel=0.02, abs=2e-4)


BAD = {
    "no such cap": ({"softcap": 0.0}, "softcap is 0.0, not a number of 0.001 … 10000"),
    "not a number": ({"softcap": float("nan")}, "softcap is nan"),
    "sinks by number": ({"sinks": 2}, "sinks is 2, not 1 or absent"),
}


@pytest.mark.parametrize("case", BAD)
def test_options_that_mean_nothing_are_refused(case):
    changed, match = BAD[case]
    graph = quantized_graph(0, "float32", "static", "softcap", "slopes", "sinks")
    at = next(i for i, node in enumerate(graph.nodes) if node.op == "Attend")
    graph.nodes[at] = replace(graph.nodes[at], attrs={**graph.nodes[at].attrs, **changed})
    with pytest.raises(FormatError, match=f"layers.0.attention.attend.*{match}"):
        check_graph(graph)


def test_a_number_of_sinks_that_is_not_the_heads_is_refused_by_name():
    graph = quantized_graph(0, "float32", "static", "sinks")
    graph.constants["layers.0.attention.sinks"] = Tensor.of(np.zeros(5, np.float32))
    check_graph(graph)
    with pytest.raises(FormatError, match=r"'layers.0.attention.sinks' has shape \[5\], there are 6 heads"):
        check_values(graph)


# ---- of the logits, and learned positions
def test_the_cap_of_logits_stands_at_the_end_alone():
    graph = quantized_graph(0, "float32", "static", "logit_cap")
    check_graph(graph)
    assert graph.head.name == "head"
    graph.nodes.insert(2, Node("SoftCap", ("embedding",), ("capped",), {"softcap": 3.0}, "capped"))
    with pytest.raises(FormatError, match=r"'capped' .*it is of logits alone"):
        check_graph(graph)


def test_a_table_of_positions_has_a_row_for_each():
    graph = quantized_graph(0, "float32", "static", "positions")
    check_graph(graph)
    check_values(graph)
    graph.metadata["context_length"] = str(CONTEXT + 4)
    with pytest.raises(FormatError, match=r"'positions' .*27 rows, the metadata's context_length is 28"):
        check_values(graph)
