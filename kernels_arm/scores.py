"""Scores of attention before the softmax: softcap, and a slope by distance."""

from __future__ import annotations

import numpy as np

from .acts import ONE, exp16
from .jit import inlined, kernel
from .ops import ROWS_COLUMNS, ROWS_FLOATS, ROWS_IN, ROWS_IN_STRIDE
from .simd import (
    get_f32,
    get_i64,
    greater,
    keep_first,
    lane_numbers,
    load_floats,
    max_floats,
    splat_float,
    splat_int,
    store_floats,
    to_floats,
)

MINUS_INFINITY = np.float32(-np.inf)


@inlined
def soft_cap16(x, cap):
    """cap · tanh(x / cap), as `reference.soft_cap`; cap: address of float32 [cap, 2 / cap, 2 · cap]."""
    exponent = x * splat_float(get_f32(cap + 4))
    return splat_float(get_f32(cap)) - splat_float(get_f32(cap + 8)) / (splat_float(ONE) + exp16(exponent))


@kernel
def adjust_scores(scores, stride, count, factor, cap, slope, distance):
    """score · factor of `count` blocks of 16 keys, `stride` bytes apart, then softcap and slope, in place.

    cap, slope: addresses, or 0; distance: of the first key from the query, at most 0.
    """
    for block in range(count):
        at = scores + stride * block
        s = load_floats(at) * splat_float(factor)
        if cap:
            s = soft_cap16(s, cap)
        if slope:
            away = to_floats(lane_numbers() + splat_int(np.int32(distance + 16 * block)))
            s = s + splat_float(get_f32(slope)) * away
        store_floats(at, s)


@kernel
def hide_beyond(scores, stride, count, visible, lowest):
    """−∞ for the scores of keys from number `visible` on; returns the largest, at least `lowest`."""
    largest, hidden = splat_float(lowest), splat_float(MINUS_INFINITY)
    for block in range(count):
        at = scores + stride * block
        s = keep_first(load_floats(at), visible - 16 * block, hidden)
        store_floats(at, s)
        largest = greater(s, largest)
    return max_floats(largest)


@kernel
def run_soft_cap(op, first, last):
    """Rows first … last of the logits, in place; what stands beyond their columns is nobody's."""
    columns, cap = get_i64(op + 8 * ROWS_COLUMNS), get_i64(op + 8 * ROWS_FLOATS)
    for row in range(first, last):
        x = get_i64(op + 8 * ROWS_IN) + get_i64(op + 8 * ROWS_IN_STRIDE) * row
        for at in range(x, x + 4 * columns, 64):
            store_floats(at, soft_cap16(load_floats(at), cap))
