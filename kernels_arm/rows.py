"""Norms, gates and sums by themselves: float32 rows to float32 rows, where no product takes them in.

What is read beyond a row's columns may be anything; what is written there, up to a multiple of 16, is zeros.
"""

from __future__ import annotations

import numpy as np

from .acts import ZERO, act_row, gate_row
from .doubles import (
    add_squares,
    high_doubles,
    load_doubles,
    low_doubles,
    no_doubles,
    sqrt_f64,
    sum_doubles,
)
from .jit import inlined, kernel
from .norms import center_head, center_row, store_lanes
from .ops import (
    ROWS_ACT,
    ROWS_CENTERED,
    ROWS_COLUMNS,
    ROWS_FLOATS,
    ROWS_HEADS,
    ROWS_IN,
    ROWS_IN_STRIDE,
    ROWS_OTHER,
    ROWS_OTHER_STRIDE,
    ROWS_OUT,
    ROWS_OUT_STRIDE,
    ROWS_WEIGHT,
    ROWS_WEIGHT_STEP,
)  # fmt: skip
from .simd import get_f32, get_i64, keep_first, load_floats, splat_float, store_floats, store_floats_part


@inlined
def input_row(op, token):
    return get_i64(op + 8 * ROWS_IN) + get_i64(op + 8 * ROWS_IN_STRIDE) * token


@inlined
def output_row(op, token):
    return get_i64(op + 8 * ROWS_OUT) + get_i64(op + 8 * ROWS_OUT_STRIDE) * token


@kernel
def run_norm_rows(op, first, last):
    """Tokens first … last: y = x · (1 / sqrt(mean(x²) + ε)) · weight, as `reference.norm`, or other + y."""
    columns, floats = get_i64(op + 8 * ROWS_COLUMNS), get_i64(op + 8 * ROWS_FLOATS)
    weight, adds = get_i64(op + 8 * ROWS_WEIGHT), get_i64(op + 8 * ROWS_OTHER)
    for token in range(first, last):
        x, y, squares = input_row(op, token), output_row(op, token), no_doubles()
        row = x if adds else y  # where it stands until its sum is known
        if get_i64(op + 8 * ROWS_CENTERED):
            center_row(x, columns, row)
            x = row
        for k in range(0, columns, 16):
            store_lanes(row, k, columns, load_floats(x + 4 * k))
            squares = add_squares(squares, load_doubles(row + 4 * k))
            squares = add_squares(squares, load_doubles(row + 4 * k + 32))
        mean = sum_doubles(squares) / np.float64(get_f32(floats + 4))
        inverse = splat_float(np.float32(1 / sqrt_f64(mean + np.float64(get_f32(floats)))))
        for k in range(0, columns, 16):
            lanes = (load_floats(row + 4 * k) * inverse) * load_floats(weight + 4 * k)
            if adds:
                lanes = load_floats(y + 4 * k) + lanes
            store_floats(y + 4 * k, lanes)


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
def run_head_norm(op, first, last):
    """Tokens first … last: each head becomes its norm, as `reference.norm` over its columns, in place."""
    size, floats = get_i64(op + 8 * ROWS_COLUMNS), get_i64(op + 8 * ROWS_FLOATS)
    heads, step = get_i64(op + 8 * ROWS_HEADS), get_i64(op + 8 * ROWS_WEIGHT_STEP)
    for token in range(first, last):
        for head in range(heads):
            x, squares = input_row(op, token) + 4 * size * head, no_doubles()
            weight = get_i64(op + 8 * ROWS_WEIGHT) + step * head
            if get_i64(op + 8 * ROWS_CENTERED):
                center_head(x, size)
            for k in range(0, size, 16):
                lanes = keep_first(load_floats(x + 4 * k), size - k, splat_float(ZERO))
                squares = add_squares(squares, low_doubles(lanes))
                squares = add_squares(squares, high_doubles(lanes))
            mean = sum_doubles(squares) / np.float64(get_f32(floats + 4))
            inverse = splat_float(np.float32(1 / sqrt_f64(mean + np.float64(get_f32(floats)))))
            for k in range(0, size, 16):
                y = (load_floats(x + 4 * k) * inverse) * load_floats(weight + 4 * k)
                store_floats_part(x + 4 * k, y, size - k)


@inlined
def last_lanes(columns):
    """Where the lanes stand of which some may be none."""
    return (columns - 1) // 16 * 16


@kernel
def run_act_rows(op, first, last):
    """Tokens first … last: y = act(x)."""
    columns, act = get_i64(op + 8 * ROWS_COLUMNS), get_i64(op + 8 * ROWS_ACT)
    end = last_lanes(columns)
    for token in range(first, last):
        y = output_row(op, token)
        act_row(act, input_row(op, token), 0, columns, y, get_i64(op + 8 * ROWS_FLOATS))
        store_lanes(y, end, columns, load_floats(y + 4 * end))


@kernel
def run_gate_rows(op, first, last):
    """Tokens first … last: y = act(gate) · other, a gate's column for one of the other's or for several."""
    columns, act = get_i64(op + 8 * ROWS_COLUMNS), get_i64(op + 8 * ROWS_ACT)
    other, stride = get_i64(op + 8 * ROWS_OTHER), get_i64(op + 8 * ROWS_OTHER_STRIDE)
    gates, end = get_i64(op + 8 * ROWS_HEADS), last_lanes(columns)
    for token in range(first, last):
        x, y = other + stride * token, output_row(op, token)
        if gates:
            gate_groups(act, input_row(op, token), gates, x, columns // gates, y)
        else:
            gate_row(act, input_row(op, token), x, 0, columns, y)
        store_lanes(y, end, columns, load_floats(y + 4 * end))


@kernel
def gate_groups(act, gate, gates, x, size, y):
    """y = x times a factor for each group of `size` columns, of which there are `gates`."""
    for group in range(gates):
        at = 4 * size * group
        for k in range(0, size, 16):
            store_floats_part(y + at + 4 * k, splat_float(get_f32(gate + 4 * group)), size - k)
        gate_row_part(act, x + at, size, y + at)


@kernel
def gate_row_part(act, x, size, y):
    """y = act(y) · x, `size` columns and nothing beyond."""
    whole = size // 16 * 16
    gate_row(act, y, x, 0, whole, y)
    if whole < size:
        beyond = load_floats(y + 4 * whole)
        gate_row(act, y, x, whole, size, y)
        lanes = load_floats(y + 4 * whole)
        store_floats(y + 4 * whole, keep_first(lanes, size - whole, beyond))


@kernel
def run_add_rows(op, first, last):
    """Tokens first … last: y = a + b."""
    columns = get_i64(op + 8 * ROWS_COLUMNS)
    other, stride = get_i64(op + 8 * ROWS_OTHER), get_i64(op + 8 * ROWS_OTHER_STRIDE)
    for token in range(first, last):
        a, b, y = input_row(op, token), other + stride * token, output_row(op, token)
        for k in range(0, columns, 16):
            store_lanes(y, k, columns, load_floats(a + 4 * k) + load_floats(b + 4 * k))
