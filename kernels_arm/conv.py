"""Depthwise causal convolution over the last inputs of a sequence, which are its state.

    rows of the state   float32 [slot, KEPT + taps − 1, c padded to 16]: position p's at p modulo their number

A work item is a block of 16 channels over all tokens of the step, so no other reads the rows that it writes.
Rows before the step stay until they are KEPT positions away: a sequence may be cut back by so many.
"""

from __future__ import annotations

import numpy as np

from .acts import ONE, ZERO, exp16
from .jit import inlined, kernel
from .norms import store_lanes
from .ops import (
    C_BIAS,
    C_COLUMNS,
    C_IN,
    C_IN_STRIDE,
    C_OUT,
    C_OUT_STRIDE,
    C_ROWS,
    C_SILU,
    C_TAPS,
    C_WEIGHT,
    C_ZEROS,
    KEPT,
    STEP_SPANS,
)  # fmt: skip
from .simd import get_i64, load_floats, set_i64, splat_float, store_floats
from .spans import first_row, past_of, rows_until, sequence_end, slot_of, span_of


@kernel
def conv_items(op):
    """Blocks of 16 channels."""
    return (get_i64(op + 8 * C_COLUMNS) + 15) // 16


@inlined
def silu16(x):
    return x / (splat_float(ONE) + exp16(splat_float(ZERO) - x))


@kernel
def place_taps(op, held, count, row, position, before, taps, scratch):
    """The addresses of the rows that token `position` reads: of the state, `held`, where they are earlier
    than the step's first position, `before`; zeros where there is no position.
    """
    stride = get_i64(op + 8 * C_IN_STRIDE)
    width = (get_i64(op + 8 * C_COLUMNS) + 15) // 16 * 64
    for i in range(taps):
        back = taps - 1 - i
        at = position - back
        address = get_i64(op + 8 * C_ZEROS)
        if at >= before:
            address = row - stride * back
        elif at >= 0:
            address = held + width * (at % count)
        set_i64(scratch + 8 * i, address)


@kernel
def conv_row(op, y, first, last, taps, scratch):
    """Channels 16 · first … 16 · last of a token whose rows `place_taps` has found."""
    columns, silu = get_i64(op + 8 * C_COLUMNS), get_i64(op + 8 * C_SILU)
    weight, bias = get_i64(op + 8 * C_WEIGHT), get_i64(op + 8 * C_BIAS)
    width = (columns + 15) // 16 * 64
    for block in range(first, last):
        at = 64 * block
        total = load_floats(get_i64(scratch) + at) * load_floats(weight + at)
        for i in range(1, taps):
            x = load_floats(get_i64(scratch + 8 * i) + at)
            total = total + x * load_floats(weight + width * i + at)
        total = total + load_floats(bias + at)
        store_lanes(y, 16 * block, columns, silu16(total) if silu else total)


@kernel
def keep_rows(op, held, count, row, position, tokens, first, last):
    """The inputs of the last of `tokens` tokens from `position` on become rows of the state."""
    stride, width = get_i64(op + 8 * C_IN_STRIDE), (get_i64(op + 8 * C_COLUMNS) + 15) // 16 * 64
    for token in range(max(0, tokens - count), tokens):
        source, target = row + stride * token, held + width * ((position + token) % count)
        for at in range(64 * first, 64 * last, 64):
            store_floats(target + at, load_floats(source + at))


@kernel
def run_conv(op, step, first, last, scratch):
    """Blocks first … last: y[p] = Σ_i x[p − taps + 1 + i] · w[i] + bias, or silu of it."""
    taps, spans = get_i64(op + 8 * C_TAPS), get_i64(step + 8 * STEP_SPANS)
    count = KEPT + taps - 1
    size = np.int64(count * ((get_i64(op + 8 * C_COLUMNS) + 15) // 16 * 64))
    number = 0
    while number < spans:
        end, span = sequence_end(step, number), span_of(step, number)
        start, tokens = first_row(span), rows_until(step, number, end)
        before = past_of(span) + start
        held = get_i64(op + 8 * C_ROWS) + size * slot_of(span)
        row = get_i64(op + 8 * C_IN) + get_i64(op + 8 * C_IN_STRIDE) * start
        y = get_i64(op + 8 * C_OUT) + get_i64(op + 8 * C_OUT_STRIDE) * start
        for token in range(tokens):
            x = row + get_i64(op + 8 * C_IN_STRIDE) * token
            place_taps(op, held, count, x, before + token, before, taps, scratch)
            conv_row(op, y + get_i64(op + 8 * C_OUT_STRIDE) * token, first, last, taps, scratch)
        keep_rows(op, held, count, row, before, tokens, first, last)
        number = end
