"""Attention over an int8 cache: compiled kernels equal the reference bit for bit, however the work is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flatlm.kernels_arm import ops, reference
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.records import record
from flatlm.kernels_arm.team import aligned
from flatlm.runtime.states.kv_int8 import Int8Cache
from tests.single_ops import run

SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 40)
)  # groups, heads of each, size / 2
CUTS = st.lists(st.integers(1, 20), min_size=1, max_size=3)  # tokens of each step after the first


def native(qkv: np.ndarray, shape, cuts, threads: int, window: int = 0) -> np.ndarray:
    """qkv [m, (h + 2g), d] through ROTATE8 and ATTEND8 in steps of `cuts` tokens → [m, h, d]."""
    groups, share, size = shape
    heads, m, context = groups * share, len(qkv), len(qkv)
    cache = Int8Cache(groups, size, context)
    width, blocks = padded(size, 16), cache.context // ops.KV_BLOCK
    cos, sin = (np.append(t, np.zeros(16, np.float32)) for t in tables(m, size))
    stride, out_stride = (padded(n * size, 16) + 16 for n in (heads + 2 * groups, heads))
    rows, out = np.zeros((m, stride), np.float32), np.zeros((m, out_stride), np.float32)
    rows[:, : qkv[0].size] = qkv.reshape(m, -1)
    largest = max(cuts)
    queries = aligned(largest * heads * (width + 16))
    parts = aligned(4 * ops.FEW_TOKENS * heads * blocks * (width + 16))
    counters, scale = aligned(64 * groups), np.array([size**-0.5], np.float32)
    at = 0
    for tokens in cuts:
        fields = {
            "I_QKV": rows[at:].ctypes.data, "I_STRIDE": 4 * stride, "I_HEADS": heads, "I_GROUPS": groups,
            "I_SIZE": size, "I_COS": cos.ctypes.data, "I_SIN": sin.ctypes.data, "I_FLOATS": scale.ctypes.data,
            "I_CONTEXT": cache.context, "I_QUERIES": queries.ctypes.data, "I_KEYS": cache.keys.ctypes.data,
            "I_KEY_SCALES": cache.key_scales.ctypes.data, "I_VALUES": cache.values.ctypes.data,
            "I_VALUE_SCALES": cache.value_scales.ctypes.data, "I_OUT": out[at:].ctypes.data,
            "I_OUT_STRIDE": 4 * out_stride, "I_PARTS": parts.ctypes.data, "I_COUNTERS": counters.ctypes.data,
            "I_WINDOW": window,
        }  # fmt: skip
        records = [record(ops.ROTATE8, **fields), record(ops.ATTEND8, **fields)]
        run(records, [(0, tokens, at)], ops.attention8_scratch(size, cache.context), threads)
        at += tokens
    return out[:, : heads * size].reshape(m, heads, size)


def tables(m: int, size: int):
    return reference.rotary_table(np.arange(m), (1e4 ** (-np.arange(0, size, 2) / size)).astype(np.float32))


def expected(qkv: np.ndarray, shape, window: int = 0) -> np.ndarray:
    groups, share, size = shape
    q, k, v = np.split(qkv, [groups * share, groups * (share + 1)], axis=1)
    cos, sin = tables(len(qkv), size)
    turned = reference.rotate(np.concatenate([q, k], 1), cos, sin)
    q, k = np.split(turned, [groups * share], axis=1)
    cache = (*reference.quantize_heads(k), *reference.quantize_heads(v))
    return reference.attention_int8(q, *cache, size**-0.5, window)


def random_qkv(rng: np.random.Generator, m: int, shape, spread: float = 2.0) -> np.ndarray:
    groups, share, size = shape
    return (rng.standard_normal((m, groups * (share + 2), size)) * spread).astype(np.float32)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(np.ascontiguousarray(a).view(np.int32), np.ascontiguousarray(b).view(np.int32))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 530), CUTS, st.sampled_from([1, 2, 4]), st.integers(0, 2**31))
@example((2, 7, 32), 250, [5, 8, 9], 2, 0)  # steps that end before, in and after the first block
@example((1, 3, 32), 256, [1, 1], 3, 1)
@example((2, 6, 64), 511, [2, 20], 4, 2)
def test_attention_equals_the_reference_for_any_shape_and_cut(half_shape, first, cuts, threads, seed):
    shape = (*half_shape[:2], 2 * half_shape[2])
    qkv = random_qkv(np.random.default_rng(seed), first + sum(cuts), shape)
    assert same_bits(native(qkv, shape, [first, *cuts], threads), expected(qkv, shape))


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(1, 560), CUTS, st.integers(1, 600), st.sampled_from([1, 2]), st.integers(0, 2**31))
@example(
    (2, 7, 32), 500, [5, 8, 9], 100, 2, 0
)  # a window over two blocks, and one whose first begins in a step
@example((1, 3, 32), 512, [1, 1], 1, 1, 1)
@example((1, 3, 32), 512, [8, 8], 256, 2, 2)
def test_a_window_equals_the_references(half_shape, first, cuts, window, threads, seed):
    shape = (*half_shape[:2], 2 * half_shape[2])
    qkv = random_qkv(np.random.default_rng(seed), first + sum(cuts), shape)
    found = native(qkv, shape, [first, *cuts], threads, window)
    assert same_bits(found, expected(qkv, shape, window))


def test_a_row_is_the_same_alone_and_among_others():
    shape = (2, 3, 20)
    qkv = random_qkv(np.random.default_rng(3), 300, shape)
    whole = native(qkv, shape, [300], 1)
    assert same_bits(native(qkv, shape, [250, *[1] * 50], 3), whole)
    assert same_bits(native(qkv, shape, [50] * 6, 2), whole)


@pytest.mark.parametrize("spread", [0.0, 1e-35, 1e-3, 1e3, 1e15])
def test_no_magnitude_breaks_the_sums(spread):
    shape = (1, 2, 16)
    qkv = random_qkv(np.random.default_rng(4), 270, shape, spread)
    out = native(qkv, shape, [262, 8], 2)
    assert np.isfinite(out).all()
    assert same_bits(out, expected(qkv, shape))


def test_equal_weights_over_a_long_context_do_not_overflow():
    shape = (1, 1, 4)
    qkv = np.zeros((3000, 3, 4), np.float32)
    qkv[:, 2] = 5
    np.testing.assert_allclose(native(qkv, shape, [2999, 1], 2)[-1], np.full((1, 4), 5), rtol=1e-4)


def test_the_result_is_near_that_of_float_attention():
    rng = np.random.default_rng(5)
    q, k, v = (rng.standard_normal((700, n, 64)).astype(np.float32) for n in (4, 2, 2))
    exact = reference.attention(q, k, v, 1 / 8)
    cache = (*reference.quantize_heads(k), *reference.quantize_heads(v))
    error = reference.attention_int8(q, *cache, 1 / 8) - exact
    assert np.sqrt(np.mean(error**2) / np.mean(exact**2)) < 0.012
