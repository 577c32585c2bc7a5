"""Causal attention over an int8 K/V cache, in integers (docs/format.md, Attend with an int8 state).

Both products are panels of 16 outputs as in product.py: 16 keys times the d elements of a query, and 16
elements of the values times the weights of 256 positions, which are two int8 digits (128 · high + low).
Positions are cut into blocks of 256, each with a maximum, a sum of weights and a step of its own; a row's
blocks are joined at the end. So no result depends on who computed which block. Of a window, blocks that no
row sees are passed over: their share would be 0.

    keys     int8 [slot, g, context/16, d/4, 16, 4]        scales float32 [slot, g, context]
    values   int8 [slot, g, context/256, d/16, 64, 16, 4]  scales float32 [slot, g, context]
    queries  per token and head: int8 [d], then float32 factor, int32 sum of the int8, 8 bytes unused
    part     of a row in a block: float32 [d] values, maximum, sum of weights, float64 share, 12 words unused
    scratch  query digits [16, d], weight digits [16, 256], scores [16, 8, 16], sums [d/16, 16, 16], parts

d is padded to 16 with zeros everywhere here. Rows of one call are (token, head) pairs of one K/V group.
"""

from __future__ import annotations

import numpy as np

from .acts import ONE, exp16
from .append8 import padded_size, query_bytes
from .blocks import add_block
from .dots import int8_offset
from .doubles import add_products, load_doubles, set_f64, store_tile_as_floats, zero_doubles
from .forms import from_block, to_block
from .jit import inlined, kernel
from .ops import (
    FEW_TOKENS,
    I_CAP,
    I_CONTEXT,
    I_COUNTERS,
    I_GROUPS,
    I_HEADS,
    I_KEY_SCALES,
    I_KEYS,
    I_OUT,
    I_OUT_STRIDE,
    I_PARTS,
    I_QUERIES,
    I_SINKS,
    I_SIZE,
    I_SLOPES,
    I_VALUE_SCALES,
    I_VALUES,
    I_WINDOW,
    KV_BLOCK,
    STEP_SPANS,
)  # fmt: skip
from .reference import FLOOR, LOWEST, PART_OF_SUM, SUM_STEPS, WEIGHT_LEVELS
from .scores import MINUS_INFINITY, adjust_scores, hide_beyond
from .simd import (
    get_f32,
    get_i32,
    get_i64,
    greater,
    high_digits,
    keep_first,
    load_floats,
    load_ints,
    low_digits,
    max_floats,
    round_even,
    set_f32,
    set_i32,
    splat_float,
    splat_int,
    store_floats,
    store_floats_part,
    store_steps,
    sum_ints,
    times_128,
    to_floats,
    to_ints,
)
from .spans import first_row, past_of, row_count, slot_of, span_of
from .threads import atomic_add, atomic_store
from .tiles import full_rows, full_tile, has_tile, store_tile, tile_of, zero_ints

DIGIT_ROWS = 16  # of a call: query rows, each with two digits of weights
SCORE_STRIDE = 512  # bytes of 16 keys' scores for 8 query rows


@inlined
def part_bytes(width):
    return 4 * (width + 16)


# ------------------------------------------------------------------------------------------ integer products
def _panels(tokens: int):
    @inlined
    def panels(weights, count, stride, columns, x, out, out_stride):
        """`count` panels of int8 weights times one tile of digits → int32 [count, tokens, 16]."""
        for panel in range(count):
            acc = to_block(zero_ints(tokens), 8)
            for block in range(columns // 16):
                at = weights + stride * panel + 256 * block
                acc = add_block(acc, at, x + 16 * tokens * block, tokens, 8)
            store_tile(out + out_stride * panel, 64, from_block(acc, tokens, 8))

    return panels


_panels_1, _panels_2, _panels_4, _panels_6, _panels_8, _panels_16 = (_panels(m) for m in (1, 2, 4, 6, 8, 16))


@kernel
def multiply_tile(tile, weights, count, stride, columns, x, out, out_stride):
    if has_tile(1) and tile == 1:
        _panels_1(weights, count, stride, columns, x, out, out_stride)
    elif has_tile(2) and tile == 2:
        _panels_2(weights, count, stride, columns, x, out, out_stride)
    elif has_tile(4) and tile == 4:
        _panels_4(weights, count, stride, columns, x, out, out_stride)
    elif has_tile(6) and tile == 6:
        _panels_6(weights, count, stride, columns, x, out, out_stride)
    elif has_tile(8) and tile == 8:
        _panels_8(weights, count, stride, columns, x, out, out_stride)
    elif has_tile(16) and tile == 16:
        _panels_16(weights, count, stride, columns, x, out, out_stride)


@kernel
def multiply(rows, weights, count, stride, columns, x, out, out_stride):
    """The same for `rows` rows of digits, tile after tile."""
    for first in range(0, rows, full_tile()):
        tile = tile_of(min(full_tile(), rows - first))
        multiply_tile(
            tile, weights, count, stride, columns, x + columns * first, out + 64 * first, out_stride
        )


@inlined
def tile_around(row, rows):
    """First row and size of the tile that holds a row of digits."""
    first = row // full_tile() * full_tile()
    return first, tile_of(min(full_tile(), rows - first))


# ------------------------------------------------------------------------------------------ a block's softmax
@kernel
def score_row(scores, count, visible, key_scales, factor, shift):
    """Sums of one row → scores in place, −inf from `visible` on; returns the largest, at least LOWEST."""
    largest, hidden = splat_float(LOWEST), splat_float(MINUS_INFINITY)
    for group in range(count):
        at = scores + SCORE_STRIDE * group
        s = to_floats(load_ints(at) - splat_int(shift))
        s = (s * load_floats(key_scales + 64 * group)) * splat_float(factor)
        s = keep_first(s, visible - 16 * group, hidden)
        store_floats(at, s)
        largest = greater(s, largest)
    return max_floats(largest)


@kernel
def hide_first(scores, count, hidden):
    """−∞ for the first `hidden` scores of a row; returns the largest of the others, at least LOWEST."""
    largest = splat_float(LOWEST)
    for group in range(count):
        at = scores + SCORE_STRIDE * group
        s = keep_first(splat_float(MINUS_INFINITY), hidden - 16 * group, load_floats(at))
        store_floats(at, s)
        largest = greater(s, largest)
    return max_floats(largest)


@kernel
def weigh_row(scores, count, largest, value_scales, part):
    """Scores → weights times the values' scales, in place; returns the largest of them."""
    top, total, shift = splat_float(FLOOR), splat_int(np.int32(0)), splat_float(largest)
    for group in range(count):
        at = scores + SCORE_STRIDE * group
        weight = exp16(load_floats(at) - shift)
        total = total + to_ints(round_even(weight * splat_float(SUM_STEPS)))
        weight = weight * load_floats(value_scales + 64 * group)
        store_floats(at, weight)
        top = greater(weight, top)
    set_f32(part, np.float32(np.float32(sum_ints(total)) * PART_OF_SUM))
    return max_floats(top)


@kernel
def split_row(scores, count, inverse, high, high_tile, low, low_tile):
    """Weights → two digits in the order of their tiles; returns the sum of the integers."""
    total = splat_int(np.int32(0))
    for group in range(count):
        steps = to_ints(round_even(load_floats(scores + SCORE_STRIDE * group) * splat_float(inverse)))
        total = total + steps
        store_steps(high + 16 * high_tile * group, high_digits(steps), 4 * high_tile)
        store_steps(low + 16 * low_tile * group, low_digits(steps), 4 * low_tile)
    return sum_ints(total)


@kernel
def gather_queries(op, group, row, rows, token, digits):
    """The rows' query digits in the order of their tiles."""
    width = padded_size(op)
    for r in range(rows):
        first, tile = tile_around(r, rows)
        x = query_of(op, group, row + r, token)
        out = digits + width * first + 4 * (r - first)
        for s in range(width // 4):
            set_i32(out + 4 * tile * s, get_i32(x + 4 * s))


@inlined
def query_of(op, group, row, token):
    """Where query row `row` of a group stands, counted from `token` on."""
    heads = get_i64(op + 8 * I_HEADS)
    share = heads // get_i64(op + 8 * I_GROUPS)
    head, number = group * share + row % share, token + row // share
    return get_i64(op + 8 * I_QUERIES) + query_bytes(padded_size(op)) * (heads * number + head)


@kernel
def attend_block(op, slot, group, row, rows, token, past, block, parts, part_stride, scratch):
    """The parts of `rows` query rows in one block; the rows' digits stand in the scratch."""
    width, context = padded_size(op), get_i64(op + 8 * I_CONTEXT)
    share = get_i64(op + 8 * I_HEADS) // get_i64(op + 8 * I_GROUPS)
    start, window = block * KV_BLOCK, get_i64(op + 8 * I_WINDOW)
    cap, slopes = get_i64(op + 8 * I_CAP), get_i64(op + 8 * I_SLOPES)
    digits = scratch + DIGIT_ROWS * width
    scores = digits + DIGIT_ROWS * KV_BLOCK
    sums = scores + SCORE_STRIDE * (KV_BLOCK // 16)
    seen = past + token + (row + rows - 1) // share + 1 - start  # positions that the last row sees
    count = (max(0, min(seen, KV_BLOCK)) + 15) // 16
    cached = get_i64(op + 8 * I_GROUPS) * slot + group
    place = context * cached + start % context  # of a window, the cache is a ring of whole blocks
    at, scales = width * place, 4 * place
    multiply(rows, get_i64(op + 8 * I_KEYS) + at, count, 16 * width, width, scratch, scores, SCORE_STRIDE)
    for r in range(rows):
        visible, x = (
            past + token + (row + r) // share + 1 - start,
            query_of(op, group, row + r, token) + width,
        )
        part, s = parts + part_stride * r + 4 * width, scores + 64 * r
        shift = np.int32(get_i32(x + 4) * int8_offset())
        largest = score_row(s, count, visible, get_i64(op + 8 * I_KEY_SCALES) + scales, get_f32(x), shift)
        if cap or slopes:
            slope = slopes + 4 * (group * share + (row + r) % share) if slopes else 0
            adjust_scores(s, SCORE_STRIDE, count, ONE, cap, slope, 1 - visible)
            largest = hide_beyond(s, SCORE_STRIDE, count, visible, LOWEST)
        if 0 < window < visible:
            largest = hide_first(scores + 64 * r, count, visible - window)
        set_f32(part, largest)
        top = weigh_row(s, count, largest, get_i64(op + 8 * I_VALUE_SCALES) + scales, part + 4)
        first, tile = tile_around(r, 2 * rows)
        first_low, tile_low = tile_around(rows + r, 2 * rows)
        high = digits + 16 * count * first + 4 * (r - first)
        low = digits + 16 * count * first_low + 4 * (rows + r - first_low)
        total = split_row(s, count, np.float32(WEIGHT_LEVELS / top), high, tile, low, tile_low)
        set_f32(part + 8, np.float32(top / WEIGHT_LEVELS))
        set_i32(part + 12, total)
    values = get_i64(op + 8 * I_VALUES) + at
    multiply(2 * rows, values, width // 16, 16 * KV_BLOCK, 16 * count, digits, sums, 64 * DIGIT_ROWS)
    for r in range(rows):
        part = parts + part_stride * r
        scale, shift = get_f32(part + 4 * width + 8), get_i32(part + 4 * width + 12) * int8_offset()
        for panel in range(width // 16):
            high = load_ints(sums + 64 * (DIGIT_ROWS * panel + r))
            low = load_ints(sums + 64 * (DIGIT_ROWS * panel + rows + r))
            acc = times_128(high) + low - splat_int(np.int32(shift))
            store_floats(part + 64 * panel, to_floats(acc) * splat_float(scale))


# ------------------------------------------------------------------------------------------ blocks of one row
@kernel
def join_row(op, group, row, token, parts, stride, blocks, scratch):
    """out = Σ share · values / Σ share · sum of weights, with share = e^(maximum − the largest maximum)."""
    size, width = get_i64(op + 8 * I_SIZE), padded_size(op)
    share = get_i64(op + 8 * I_HEADS) // get_i64(op + 8 * I_GROUPS)
    largest, total, sinks = LOWEST, np.float64(0), get_i64(op + 8 * I_SINKS)
    sink = get_f32(sinks + 4 * (group * share + row % share)) if sinks else MINUS_INFINITY
    for block in range(blocks):
        largest = max(largest, get_f32(parts + stride * block + 4 * width))
    largest = max(largest, sink)
    for block in range(blocks):
        at = parts + stride * block + 4 * width
        store_floats(scratch, exp16(splat_float(np.float32(get_f32(at) - largest))))
        part = np.float64(get_f32(scratch))
        set_f64(at + 8, part)
        total += part * np.float64(get_f32(at + 4))
    if sinks:
        store_floats(scratch, exp16(splat_float(np.float32(sink - largest))))
        total += np.float64(get_f32(scratch))
    inverse = np.float32(1 / total)
    out = get_i64(op + 8 * I_OUT) + get_i64(op + 8 * I_OUT_STRIDE) * (token + row // share)
    out += 4 * size * (group * share + row % share)
    for lane in range(0, size, 16):
        for half in range(0, 16, 8):
            acc = zero_doubles(1)
            for block in range(blocks):
                at = parts + stride * block
                acc = add_products(acc, load_doubles(at + 4 * (lane + half)), at + 4 * width + 8, 8)
            store_tile_as_floats(scratch + 4 * half, 64, acc)
        store_floats_part(out + 4 * lane, load_floats(scratch) * splat_float(inverse), size - lane)


# --------------------------------------------------------------------------------------------------- the work
@inlined
def blocks_seen(span):
    return (past_of(span) + first_row(span) + row_count(span) + KV_BLOCK - 1) // KV_BLOCK


@inlined
def first_block(op, position):
    """The first block that a query at `position` sees."""
    window = get_i64(op + 8 * I_WINDOW)
    return max(0, position + 1 - window) // KV_BLOCK if window else 0


@kernel
def blocks_of(op, span):
    """The first block that a row of the span sees, and how many there are from there on."""
    first = first_block(op, past_of(span) + first_row(span))
    return first, blocks_seen(span) - first


@kernel
def attend8_items(op, step):
    """Of one span: K/V groups × blocks, so that all threads have work. Of many: groups × spans."""
    groups, spans = get_i64(op + 8 * I_GROUPS), get_i64(step + 8 * STEP_SPANS)
    return groups * (blocks_of(op, span_of(step, 0))[1] if spans == 1 else spans)


@kernel
def attend_few(op, step, item, scratch):
    """One block for all rows of a group. Who finishes a group's last block joins its rows."""
    span, width = span_of(step, 0), padded_size(op)
    tokens, slot, past = row_count(span), slot_of(span), past_of(span)
    before, blocks = blocks_of(op, span)
    most = get_i64(op + 8 * I_CONTEXT) // KV_BLOCK
    group, block = item // blocks, item % blocks
    share = get_i64(op + 8 * I_HEADS) // get_i64(op + 8 * I_GROUPS)
    stride = part_bytes(width) * most
    parts = get_i64(op + 8 * I_PARTS) + stride * FEW_TOKENS * share * group
    for row in range(0, tokens * share, full_rows()):
        rows = min(tokens * share - row, full_rows())
        gather_queries(op, group, row, rows, 0, scratch)
        at = parts + stride * row + part_bytes(width) * block
        attend_block(op, slot, group, row, rows, 0, past, before + block, at, stride, scratch)
    counter = get_i64(op + 8 * I_COUNTERS) + 64 * group
    if atomic_add(counter, 1) == blocks - 1:
        atomic_store(counter, 0)
        for row in range(tokens * share):
            join_row(op, group, row, 0, parts + stride * row, part_bytes(width), blocks, scratch)


@kernel
def attend_many(op, step, item, scratch):
    """A span's tokens in a group, all their blocks one after the other."""
    groups, most = get_i64(op + 8 * I_GROUPS), get_i64(op + 8 * I_CONTEXT) // KV_BLOCK
    width = padded_size(op)
    share, stride = get_i64(op + 8 * I_HEADS) // groups, part_bytes(width) * most
    group, span = item % groups, span_of(step, item // groups)
    token, slot, past = first_row(span), slot_of(span), past_of(span)
    parts = (
        scratch
        + DIGIT_ROWS * width
        + DIGIT_ROWS * KV_BLOCK
        + SCORE_STRIDE * (KV_BLOCK // 16)
        + 4 * DIGIT_ROWS * width
    )
    left, row = row_count(span) * share, 0
    while left > 0:
        rows = min(left, full_rows())
        before = first_block(op, past + token + row // share)
        blocks = (past + token + (row + rows - 1) // share) // KV_BLOCK + 1 - before
        gather_queries(op, group, row, rows, token, scratch)
        for block in range(blocks):
            at = parts + part_bytes(width) * block
            attend_block(op, slot, group, row, rows, token, past, before + block, at, stride, scratch)
        for r in range(rows):
            join_row(op, group, row + r, token, parts + stride * r, part_bytes(width), blocks, scratch)
        row += rows
        left -= rows


@kernel
def run_attend8(op, step, first, last, scratch):
    for item in range(first, last):
        if get_i64(step + 8 * STEP_SPANS) == 1:
            attend_few(op, step, item, scratch)
        else:
            attend_many(op, step, item, scratch)
