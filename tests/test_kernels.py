"""The compiled kernels equal the numpy reference bit for bit, over shapes, tails and thread counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.kernels_arm import layout, reference
from tests.single_ops import linear

BITS = st.sampled_from([4, 8])
SHAPES = st.tuples(st.integers(1, 80), st.integers(1, 70), st.integers(1, 130))


def random_layer(
    seed: int, m: int, n: int, k: int, bits: int, wide: float, outliers: float, by_token: bool = False
):
    rng = np.random.default_rng(seed)
    weights = rng.integers(-8, 8, (n, k)) if bits == 4 else rng.integers(-127, 128, (n, k))
    if bits == 4:
        where = rng.random((n, k)) < outliers
        weights[where] = rng.integers(-119, 120, int(where.sum()))
    limit = np.where(rng.random(k) < wide, rng.integers(2, 128, k), 1).astype(np.int32) * 127
    x = (rng.standard_normal((m, k)) * limit * 0.7).astype(np.float32)
    scale, bias = rng.random(n).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    if by_token:
        x *= np.exp(9 * rng.standard_normal((m, 1)).astype(np.float32))
        x[rng.random(m) < 0.1] = 0
    return x, None if by_token else np.float32(rng.random() + 0.5), limit, weights, bits, scale, bias


def expected(x, inverse_scale, limit, weights, bits, scale, bias):
    if inverse_scale is None:
        steps, step = reference.quantize_token(x, limit, 127)
    else:
        steps, step = reference.quantize(x, inverse_scale, limit), None
    return reference.scale_product(reference.integer_product(steps, weights), scale, bias, step)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(np.ascontiguousarray(a).view(np.int32), np.ascontiguousarray(b).view(np.int32))


@settings(max_examples=150, deadline=None)
@given(
    SHAPES,
    BITS,
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0.0, 0.02, 0.5]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_a_linear_layer_equals_the_reference_for_any_shape(shape, bits, wide, outliers, by_token, seed):
    layer = random_layer(seed, *shape, bits, wide, outliers, by_token)
    assert same_bits(linear(*layer), expected(*layer))


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(1, 80), st.integers(1, 70), st.integers(1, 9)),
    BITS,
    st.sampled_from([1.0, 0.9]),
    st.sampled_from([0.0, 0.02, 0.5]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_so_does_one_of_which_all_groups_have_two_digits(shape, bits, wide, outliers, by_token, seed):
    m, n, blocks = shape
    x, inverse_scale, limit, *rest = random_layer(seed, m, n, 16 * blocks, bits, wide, outliers, by_token)
    limit[::4] = np.maximum(limit[::4], 254)  # all groups, of which not always all channels
    assert same_bits(linear(x, inverse_scale, limit, *rest), expected(x, inverse_scale, limit, *rest))


@given(st.integers(1, 70), st.integers(0, 2**31))
def test_a_step_per_token_fills_the_range_of_one_channel_and_leaves_it_for_none(k, seed):
    x, _, limit, *_ = random_layer(seed, 5, 1, k, 8, 0.3, 0, by_token=True)
    steps, step = reference.quantize_token(x, limit, 127)
    full = np.abs(steps) == limit
    assert np.all(np.abs(steps) <= limit)
    assert np.array_equal(full.any(-1), x.any(-1))
    exact, rounding = steps.astype(np.float64), 2.0**-22  # of an integer: four float32 roundings at most
    off = np.abs(exact * step[:, None] - x) / step[:, None]
    assert np.all(off <= 0.5 + rounding * np.abs(exact))


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_do_not_change_a_bit(threads, by_token):
    layer = random_layer(1, 37, 600, 200, 4, 0.1, 0.02, by_token)
    assert same_bits(linear(*layer, threads=threads), linear(*layer, threads=1))


@pytest.mark.parametrize("m", [1, 7, 30])
def test_a_tokens_result_hangs_on_no_other_token(m):
    x, *layer = random_layer(4, 30, 50, 100, 4, 0.1, 0.02, by_token=True)
    assert same_bits(linear(x[:m], *layer), linear(x, *layer)[:m])


@pytest.mark.parametrize("bits", [4, 8])
def test_extreme_integers_do_not_overflow(bits):
    k, n = 8960, 16
    top = 119 if bits == 4 else 127
    weights = np.full((n, k), top)
    x, limit = np.full((2, k), 1e9, np.float32), np.full(k, 127, np.int32)
    limit[:8] = 127 * 127
    layer = x, np.float32(1), limit, weights, bits, np.ones(n, np.float32), np.zeros(n, np.float32)
    assert same_bits(linear(*layer), expected(*layer))


def test_the_residual_is_added_to_what_is_there():
    layer = random_layer(2, 5, 33, 70, 8, 0.0, 0.0)
    stream = np.random.default_rng(3).standard_normal((5, 33)).astype(np.float32)
    assert same_bits(linear(*layer, residual=stream), stream + expected(*layer))


@given(st.integers(1, 40), st.integers(1, 60), BITS, st.integers(0, 2**31))
def test_unpacking_undoes_packing(rows, columns, bits, seed):
    rng = np.random.default_rng(seed)
    weights = rng.integers(*((-8, 8) if bits == 4 else (-128, 128)), (rows, columns)).astype(np.int8)
    assert np.array_equal(layout.unpack(layout.pack(weights, bits), rows, columns, bits), weights)


@given(
    st.integers(1, 40), st.integers(1, 60), st.sampled_from([0.0, 0.003, 0.05, 1.0]), st.integers(0, 2**31)
)
def test_plane_and_sparse_excess_give_back_the_totals(rows, columns, density, seed):
    rng = np.random.default_rng(seed)
    totals = np.where(rng.random((rows, columns)) < density, rng.integers(-119, 120, (rows, columns)), 1)
    delta, value = layout.encode_excess(totals)
    assert np.array_equal(layout.totals_of(layout.pack(totals, 4), rows, columns, 4, delta, value), totals)


def test_totals_beyond_the_format_are_refused():
    with pytest.raises(ValueError, match="reach 120"):
        layout.encode_excess(np.array([[120]]))


def test_the_exponential_is_close_to_the_true_one():
    x = np.linspace(-87, 88, 100_001).astype(np.float32)
    true = np.exp(x.astype(np.float64))
    assert np.max(np.abs(reference.exp(x) - true) / true) < 3e-7
    assert reference.exp(np.array([-np.inf, -1000], np.float32)).tolist() == [0, 0]
