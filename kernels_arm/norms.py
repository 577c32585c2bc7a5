"""Norms of rows: the sums of squares, and the mean that a centered norm takes off first."""

from __future__ import annotations

import numpy as np

from .acts import ZERO
from .doubles import (
    add_doubles,
    add_squares,
    high_doubles,
    load_doubles,
    low_doubles,
    no_doubles,
    sqrt_f64,
    sum_doubles,
)
from .jit import inlined, kernel
from .ops import Q_FLOATS, Q_WEIGHT
from .simd import get_f32, get_i64, keep_first, load_floats, splat_float, store_floats, store_floats_part


@inlined
def store_lanes(y, k, columns, lanes):
    """Columns k … k + 16 of the row at y, zeros where there are none."""
    store_floats(y + 4 * k, keep_first(lanes, columns - k, splat_float(ZERO)))


@inlined
def norm_row(op, x, padded, first, last, y):
    """y = x · (1 / sqrt(mean(x²) + ε)) · weight, columns first … last. Beyond the row's end stand zeros."""
    floats, weight = get_i64(op + 8 * Q_FLOATS), get_i64(op + 8 * Q_WEIGHT)
    squares = no_doubles()
    for at in range(0, 4 * padded, 32):
        squares = add_squares(squares, load_doubles(x + at))
    mean = sum_doubles(squares) / np.float64(get_f32(floats + 8))
    inverse = splat_float(np.float32(1 / sqrt_f64(mean + np.float64(get_f32(floats + 4)))))
    for at in range(4 * first, 4 * last, 64):
        store_floats(y + at, (load_floats(x + at) * inverse) * load_floats(weight + at))


@kernel
def mean_of(x, columns):
    """float32, of a float64 sum."""
    total = no_doubles()
    for k in range(0, columns, 16):
        lanes = keep_first(load_floats(x + 4 * k), columns - k, splat_float(ZERO))
        total = add_doubles(add_doubles(total, low_doubles(lanes)), high_doubles(lanes))
    return np.float32(sum_doubles(total) / np.float64(columns))


@kernel
def center_row(x, columns, y):
    """y = x − its mean, zeros beyond up to a multiple of 16."""
    mean = splat_float(mean_of(x, columns))
    for k in range(0, columns, 16):
        store_lanes(y, k, columns, load_floats(x + 4 * k) - mean)


@kernel
def center_head(x, columns):
    """The same in place, and nothing beyond."""
    mean = splat_float(mean_of(x, columns))
    for k in range(0, columns, 16):
        store_floats_part(x + 4 * k, load_floats(x + 4 * k) - mean, columns - k)
