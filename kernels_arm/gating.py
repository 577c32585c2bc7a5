"""What stands around a recurrence: rows times rows, and norms of groups of columns.

What is read beyond a row's columns may be anything; what is written there, up to a multiple of 16, is zeros.
Norms of groups are in place and write nothing there.
"""

from __future__ import annotations

import numpy as np

from .acts import ZERO
from .doubles import add_squares, high_doubles, low_doubles, no_doubles, sqrt_f64, sum_doubles
from .jit import kernel
from .norms import store_lanes
from .ops import ROWS_COLUMNS, ROWS_FLOATS, ROWS_HEADS, ROWS_OTHER, ROWS_OTHER_STRIDE, ROWS_WEIGHT
from .rows import input_row, output_row
from .simd import get_f32, get_i64, keep_first, load_floats, splat_float, store_floats_part


@kernel
def run_multiply_rows(op, first, last):
    """Tokens first … last: y = a · b."""
    columns = get_i64(op + 8 * ROWS_COLUMNS)
    other, stride = get_i64(op + 8 * ROWS_OTHER), get_i64(op + 8 * ROWS_OTHER_STRIDE)
    for token in range(first, last):
        a, b, y = input_row(op, token), other + stride * token, output_row(op, token)
        for k in range(0, columns, 16):
            store_lanes(y, k, columns, load_floats(a + 4 * k) * load_floats(b + 4 * k))


@kernel
def run_grouped_norm(op, first, last):
    """Tokens first … last: each group of columns becomes its norm, as `reference.norm`, in place."""
    size, floats = get_i64(op + 8 * ROWS_COLUMNS), get_i64(op + 8 * ROWS_FLOATS)
    groups, weights = get_i64(op + 8 * ROWS_HEADS), get_i64(op + 8 * ROWS_WEIGHT)
    for token in range(first, last):
        for group in range(groups):
            x, squares = input_row(op, token) + 4 * size * group, no_doubles()
            weight = weights + 4 * size * group
            for k in range(0, size, 16):
                lanes = keep_first(load_floats(x + 4 * k), size - k, splat_float(ZERO))
                squares = add_squares(squares, low_doubles(lanes))
                squares = add_squares(squares, high_doubles(lanes))
            mean = sum_doubles(squares) / np.float64(get_f32(floats + 4))
            inverse = splat_float(np.float32(1 / sqrt_f64(mean + np.float64(get_f32(floats)))))
            for k in range(0, size, 16):
                y = (load_floats(x + 4 * k) * inverse) * load_floats(weight + 4 * k)
                store_floats_part(x + 4 * k, y, size - k)
