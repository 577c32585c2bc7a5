"""Causal attention over the K/V cache, without a matrix of all scores.

Keys are stored transposed in blocks of 16 positions, so one vector holds the same element of several keys and
a score is a running sum over the head; values are stored row by row, so the output is a running sum over
keys. Both sums are float64 (see `reference`). Up to 8 query rows (heads of a group, of one token or several)
share every load.

    rows of one call:   (token, head) pairs of one K/V group; row i sees keys 0 … visible[i] − 1, of a window
                        the last of those; blocks that no row sees are passed over
    scratch:            query float64 [d, rows], sums float32 [8], tile float32 [8, 16],
                        weights float64 [blocks, rows, 16], scores float32 [blocks, rows, 16]
"""

from __future__ import annotations

import numpy as np

from .acts import ONE, ZERO, exp16
from .doubles import (
    add_doubles,
    add_products,
    add_two_scores,
    add_two_values,
    high_doubles,
    load_doubles,
    low_doubles,
    no_doubles,
    set_f64,
    store_as_doubles,
    store_tile_as_floats,
    sum_doubles,
    zero_doubles,
)
from .jit import inlined, kernel
from .ops import (
    A_CAP,
    A_CONTEXT,
    A_FLOATS,
    A_GROUPS,
    A_HEADS,
    A_KEYS,
    A_OUT,
    A_OUT_STRIDE,
    A_QKV,
    A_RING,
    A_SINKS,
    A_SIZE,
    A_SLOPES,
    A_STRIDE,
    A_VALUES,
    A_WINDOW,
    ATTEND_ROWS,
    STEP_SPANS,
)  # fmt: skip
from .scores import MINUS_INFINITY, adjust_scores
from .simd import (
    fixed,
    get_f32,
    get_i64,
    greater,
    keep_first,
    load_floats,
    max_floats,
    set_f32,
    splat_float,
    store_floats,
    store_floats_part,
)
from .spans import first_row, past_of, row_count, slot_of, span_of
from .tiles import full_rows


def _rows(rows: int):
    """Scores and weighted values of `rows` query rows."""

    @inlined
    def scores_of(query, keys, blocks, size, scores):
        """query float64 [size, rows] → scores float32 [blocks, rows, 16]."""
        for half in range(2 * blocks):
            acc, at = zero_doubles(rows), keys + 64 * (half >> 1) * size + 32 * (half & 1)
            for i in range(0, size, 2):
                acc = add_two_scores(acc, at + 64 * i, 64, query + 8 * rows * i)
            store_tile_as_floats(scores + 64 * rows * (half >> 1) + 32 * (half & 1), 64, acc)

    @inlined
    def half_of(weights, values, count, width, out):
        """weights float64 [blocks, rows, 16] · 8 lanes of values [count, width] → 8 of out [rows, 16]."""
        acc = zero_doubles(rows)
        for first in range(0, count, 16):
            for j in range(first, min(count, first + 16)):
                at = fixed(weights + 8 * (rows * first + j - first))
                acc = add_products(acc, load_doubles(values + 4 * width * j), at, 128)
        store_tile_as_floats(out, 64, acc)

    @inlined
    def values_of(weights, values, count, width, out):
        """The same for 16 lanes."""
        half_of(weights, values, count, width, out)
        half_of(weights, values + 32, count, width, out + 32)

    return scores_of, values_of


def _few_rows(rows: int):
    """The same where 16 lanes of all rows fit the registers: a factor is loaded once for both halves."""

    @inlined
    def scores_of(query, keys, blocks, size, scores):
        for block in range(blocks):
            low, high, at = zero_doubles(rows), zero_doubles(rows), keys + 64 * block * size
            for i in range(0, size, 2):
                low = add_two_scores(low, at + 64 * i, 64, query + 8 * rows * i)
                high = add_two_scores(high, at + 64 * i + 32, 64, query + 8 * rows * i)
            store_tile_as_floats(scores + 64 * rows * block, 64, low)
            store_tile_as_floats(scores + 64 * rows * block + 32, 64, high)

    @inlined
    def values_of(weights, values, count, width, out):
        low, high, step = zero_doubles(rows), zero_doubles(rows), 4 * width
        for first in range(0, count, 16):
            at, start, left = weights + 8 * rows * first, values + step * first, min(16, count - first)
            for j in range(0, left - 1, 2):
                low = add_two_values(low, start + step * j, step, at + 8 * j)
                high = add_two_values(high, start + step * j + 32, step, at + 8 * j)
            if left & 1:
                last = start + step * (left - 1)
                low = add_products(low, load_doubles(last), at + 8 * left - 8, 128)
                high = add_products(high, load_doubles(last + 32), at + 8 * left - 8, 128)
        store_tile_as_floats(out, 64, low)
        store_tile_as_floats(out + 32, 64, high)

    return scores_of, values_of


_scores_1, _values_1 = _few_rows(1)
_scores_2, _values_2 = _few_rows(2)
_scores_3, _values_3 = _few_rows(3)
_scores_4, _values_4 = _rows(4)
_scores_5, _values_5 = _rows(5)
_scores_6, _values_6 = _rows(6)
_scores_7, _values_7 = _rows(7)
_scores_8, _values_8 = _rows(8)


@kernel
def scores_of(rows, query, keys, blocks, size, scores):
    if rows == 1:
        _scores_1(query, keys, blocks, size, scores)
    elif rows == 2:
        _scores_2(query, keys, blocks, size, scores)
    elif rows == 3:
        _scores_3(query, keys, blocks, size, scores)
    elif rows == 4:
        _scores_4(query, keys, blocks, size, scores)
    elif rows == 5:
        _scores_5(query, keys, blocks, size, scores)
    elif rows == 6:
        _scores_6(query, keys, blocks, size, scores)
    elif rows == 7:
        _scores_7(query, keys, blocks, size, scores)
    else:
        _scores_8(query, keys, blocks, size, scores)


@kernel
def values_of(rows, weights, values, count, width, out):
    if rows == 1:
        _values_1(weights, values, count, width, out)
    elif rows == 2:
        _values_2(weights, values, count, width, out)
    elif rows == 3:
        _values_3(weights, values, count, width, out)
    elif rows == 4:
        _values_4(weights, values, count, width, out)
    elif rows == 5:
        _values_5(weights, values, count, width, out)
    elif rows == 6:
        _values_6(weights, values, count, width, out)
    elif rows == 7:
        _values_7(weights, values, count, width, out)
    else:
        _values_8(weights, values, count, width, out)


@kernel
def softmax_row(scores, weights, rows, visible, blocks, scale, sink):
    """One row of scores → its weights e^(score · scale − max), 0 beyond `visible`; returns 1 / their sum.

    sink: the score of what has no value, −∞ where there is none.
    """
    factor, hidden = splat_float(scale), splat_float(MINUS_INFINITY)
    used = (visible + 15) // 16
    largest = hidden
    for block in range(used):
        at = scores + 64 * rows * block
        s = keep_first(load_floats(at) * factor, visible - 16 * block, hidden)
        store_floats(at, s)
        largest = greater(s, largest)
    most = max(max_floats(largest), sink)
    shift, low, high = splat_float(most), no_doubles(), no_doubles()
    for block in range(used):
        weight = exp16(load_floats(scores + 64 * rows * block) - shift)
        store_as_doubles(weights + 128 * rows * block, weight)
        low, high = add_doubles(low, low_doubles(weight)), add_doubles(high, high_doubles(weight))
    for block in range(used, blocks):
        store_as_doubles(weights + 128 * rows * block, splat_float(ZERO))
    total = sum_doubles(add_doubles(low, high))
    if sink > MINUS_INFINITY:
        total += sum_doubles(low_doubles(keep_first(exp16(splat_float(sink) - shift), 1, splat_float(ZERO))))
    return np.float32(1 / total)


@kernel
def hide_first(scores, rows, hidden):
    """−∞ for the first `hidden` keys of a row's scores."""
    for block in range((hidden + 15) // 16):
        at = scores + 64 * rows * block
        store_floats(at, keep_first(splat_float(MINUS_INFINITY), hidden - 16 * block, load_floats(at)))


@kernel
def gather_query(op, group, row, rows, token, query):
    """The rows' queries side by side, as float64 [d, rows]."""
    heads, groups, size = get_i64(op + 8 * A_HEADS), get_i64(op + 8 * A_GROUPS), get_i64(op + 8 * A_SIZE)
    share = heads // groups
    for r in range(rows):
        head, offset = group * share + (row + r) % share, (row + r) // share
        x = get_i64(op + 8 * A_QKV) + get_i64(op + 8 * A_STRIDE) * (token + offset) + 4 * size * head
        for i in range(size):
            set_f64(query + 8 * (rows * i + r), np.float64(get_f32(x + 4 * i)))


@kernel
def attend_rows(op, slot, group, row, rows, token, past, scratch):
    """`rows` query rows from number `row` on, of tokens from `token` on, over a slot of the cache."""
    heads, groups, size = get_i64(op + 8 * A_HEADS), get_i64(op + 8 * A_GROUPS), get_i64(op + 8 * A_SIZE)
    context, share, width = get_i64(op + 8 * A_CONTEXT), heads // groups, (size + 15) // 16 * 16
    sums = scratch + 8 * ATTEND_ROWS * size
    tile = sums + 64
    weights = tile + 64 * ATTEND_ROWS
    scores = weights + 8 * ATTEND_ROWS * context
    cached, window = groups * slot + group, get_i64(op + 8 * A_WINDOW)
    # the first position of the first block that a row sees: what follows counts from there
    start = max(0, past + token + row // share + 1 - window) // 16 * 16 if window else 0
    count = past + token + (row + rows - 1) // share + 1 - start
    blocks = (count + 15) // 16
    gather_query(op, group, row, rows, token, scratch)
    place = context * cached + start % get_i64(op + 8 * A_RING)
    keys = get_i64(op + 8 * A_KEYS) + 4 * size * place
    scores_of(rows, scratch, keys, blocks, size, scores)
    scale, sinks = get_f32(get_i64(op + 8 * A_FLOATS)), get_i64(op + 8 * A_SINKS)
    cap, slopes = get_i64(op + 8 * A_CAP), get_i64(op + 8 * A_SLOPES)
    for r in range(rows):
        visible = past + token + (row + r) // share + 1 - start
        at, factor = 4 * (group * share + (row + r) % share), scale
        if cap or slopes:
            slope = slopes + at if slopes else 0
            adjust_scores(scores + 64 * r, 64 * rows, blocks, scale, cap, slope, 1 - visible)
            factor = ONE
        if 0 < window < visible:
            hide_first(scores + 64 * r, rows, visible - window)
        sink = get_f32(sinks + at) if sinks else MINUS_INFINITY
        inverse = softmax_row(scores + 64 * r, weights + 128 * r, rows, visible, blocks, factor, sink)
        set_f32(sums + 4 * r, inverse)
    values = get_i64(op + 8 * A_VALUES) + 4 * width * place
    for lane in range(0, size, 16):
        values_of(rows, weights, values + 4 * lane, count, width, tile)
        for r in range(rows):
            head, offset = group * share + (row + r) % share, (row + r) // share
            out = get_i64(op + 8 * A_OUT) + get_i64(op + 8 * A_OUT_STRIDE) * (token + offset)
            y = load_floats(tile + 64 * r) * splat_float(get_f32(sums + 4 * r))
            store_floats_part(out + 4 * (size * head + lane), y, size - lane)


@kernel
def attend_items(op, step):
    """Work items: K/V groups × spans."""
    return get_i64(op + 8 * A_GROUPS) * get_i64(step + 8 * STEP_SPANS)


@kernel
def run_attend(op, step, first, last, scratch):
    """Items first … last: every query row of the span's tokens, up to 8 at a time."""
    groups = get_i64(op + 8 * A_GROUPS)
    share = get_i64(op + 8 * A_HEADS) // groups
    for item in range(first, last):
        group, span = item % groups, span_of(step, item // groups)
        left, row = row_count(span) * share, 0
        while left > 0:
            rows = min(left, full_rows())
            attend_rows(op, slot_of(span), group, row, rows, first_row(span), past_of(span), scratch)
            row += rows
            left -= rows
