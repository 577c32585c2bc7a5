"""Causal attention over the K/V cache, without a matrix of all scores.

Keys are stored transposed in blocks of 16 positions, so one vector holds the same element of 16 keys and a
score
is a plain running sum over the head; values are stored row by row, so the output is a running sum over keys.
Up to 8 query rows (heads of a group, of one token or several) share every load.

    rows of one call:   (token, head) pairs of one K/V group; row i sees keys 0 … visible[i] − 1
"""

from __future__ import annotations

import numpy as np

from .jit import inlined, kernel
from .ops import (
    A_CONTEXT,
    A_FLOATS,
    A_GROUPS,
    A_HEADS,
    A_KEYS,
    A_OUT,
    A_OUT_STRIDE,
    A_QKV,
    A_SIZE,
    A_STRIDE,
    A_VALUES,
    ATTEND_ROWS,
    STEP_PAST,
    STEP_TOKENS,
)  # fmt: skip
from .pointwise import ONE, ZERO, exp16
from .simd import (
    add_products,
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
    store_tile,
    sum_floats,
    zero_floats,
)  # fmt: skip

BLOCK = 8  # tokens of a work item
MINUS_INFINITY = np.float32(-np.inf)


def _rows(rows: int):
    """Scores and weighted values of `rows` query rows."""

    @inlined
    def scores_of(query, keys, blocks, size, scores):
        """query float32 [size, rows] → scores float32 [blocks, rows, 16]."""
        for block in range(blocks):
            acc = zero_floats(rows)
            for i in range(size):
                acc = add_products(acc, load_floats(keys + 64 * (block * size + i)), query + 4 * rows * i, 4)
            store_tile(scores + 64 * rows * block, 64, acc)

    @inlined
    def values_of(weights, values, count, width, out):
        """weights float32 [blocks, rows, 16] · values [count, width] → out [rows, 16]."""
        acc = zero_floats(rows)
        for j in range(count):
            at = weights + 64 * rows * (j >> 4) + 4 * (j & 15)
            acc = add_products(acc, load_floats(values + 4 * width * j), at, 64)
        store_tile(out, 64, acc)

    return scores_of, values_of


_scores_1, _values_1 = _rows(1)
_scores_2, _values_2 = _rows(2)
_scores_3, _values_3 = _rows(3)
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
def softmax_row(scores, stride, visible, blocks, scale):
    """Scores → e^(score·scale − max) in place, 0 beyond `visible`; returns 1 / sum."""
    factor, hidden = splat_float(scale), splat_float(MINUS_INFINITY)
    used = (visible + 15) // 16
    largest = hidden
    for block in range(used):
        s = keep_first(load_floats(scores + stride * block) * factor, visible - 16 * block, hidden)
        store_floats(scores + stride * block, s)
        largest = greater(s, largest)
    shift, total = splat_float(max_floats(largest)), splat_float(ZERO)
    for block in range(used):
        weight = exp16(load_floats(scores + stride * block) - shift)
        store_floats(scores + stride * block, weight)
        total = total + weight
    for block in range(used, blocks):
        store_floats(scores + stride * block, splat_float(ZERO))
    return ONE / sum_floats(total)


@kernel
def attend_rows(op, group, row, rows, token, past, scratch):
    """`rows` query rows from number `row` on, of tokens from `token` on."""
    heads, groups, size = get_i64(op + 8 * A_HEADS), get_i64(op + 8 * A_GROUPS), get_i64(op + 8 * A_SIZE)
    context, share, width = get_i64(op + 8 * A_CONTEXT), heads // groups, (size + 15) // 16 * 16
    query, sums, tile, scores = (
        scratch,
        scratch + 4 * ATTEND_ROWS * size,
        scratch + 4 * ATTEND_ROWS * (size + 1),
        0,
    )
    tile = (tile + 63) // 64 * 64
    scores = tile + 64 * ATTEND_ROWS
    count = past + token + (row + rows - 1) // share + 1
    blocks = (count + 15) // 16
    for r in range(rows):
        head = group * share + (row + r) % share
        x = (
            get_i64(op + 8 * A_QKV)
            + get_i64(op + 8 * A_STRIDE) * (token + (row + r) // share)
            + 4 * size * head
        )
        for i in range(size):
            set_f32(query + 4 * (rows * i + r), get_f32(x + 4 * i))
    keys = get_i64(op + 8 * A_KEYS) + 4 * size * context * group
    values = get_i64(op + 8 * A_VALUES) + 4 * width * context * group
    scores_of(rows, query, keys, blocks, size, scores)
    scale = get_f32(get_i64(op + 8 * A_FLOATS))
    for r in range(rows):
        visible = past + token + (row + r) // share + 1
        set_f32(sums + 4 * r, softmax_row(scores + 64 * r, 64 * rows, visible, blocks, scale))
    for lane in range(0, size, 16):
        values_of(rows, scores, values + 4 * lane, count, width, tile)
        for r in range(rows):
            head = group * share + (row + r) % share
            out = get_i64(op + 8 * A_OUT) + get_i64(op + 8 * A_OUT_STRIDE) * (token + (row + r) // share)
            y = load_floats(tile + 64 * r) * splat_float(get_f32(sums + 4 * r))
            store_floats_part(out + 4 * (size * head + lane), y, size - lane)


@kernel
def attend_items(op, step):
    """Work items: K/V groups × blocks of 8 tokens."""
    return get_i64(op + 8 * A_GROUPS) * ((get_i64(step + 8 * STEP_TOKENS) + BLOCK - 1) // BLOCK)


@kernel
def run_attend(op, step, first, last, scratch):
    tokens, past, groups = (
        get_i64(step + 8 * STEP_TOKENS),
        get_i64(step + 8 * STEP_PAST),
        get_i64(op + 8 * A_GROUPS),
    )
    share = get_i64(op + 8 * A_HEADS) // groups
    for item in range(first, last):
        group, token = item % groups, item // groups * BLOCK
        left, row = min(BLOCK, tokens - token) * share, 0
        while left > 0:
            rows = min(left, ATTEND_ROWS)
            attend_rows(op, group, row, rows, token, past, scratch)
            row += rows
            left -= rows
