"""Row operations: embedding, and rows made ready for a product: norm or activation, and quantization."""

from __future__ import annotations

import numpy as np

from .acts import ONE, ZERO, act_row, clamped_row, gate_row
from .jit import inlined, kernel
from .norms import center_row, norm_row
from .ops import (
    ACTED,
    CENTERED,
    CLAMPED,
    EMBED_BITS,
    EMBED_COLUMNS,
    EMBED_EXCESS,
    EMBED_OUT,
    EMBED_POSITIONS,
    EMBED_SCALE,
    EMBED_STARTS,
    EMBED_STEPS,
    EMBED_STRIDE,
    EMBED_WEIGHTS,
    GATED,
    NORM,
    Q_ACT,
    Q_COLUMNS,
    Q_EXTRAS,
    Q_FLOATS,
    Q_GROUPS,
    Q_IN,
    Q_IN_STRIDE,
    Q_KIND,
    Q_LAST,
    Q_LIMITS,
    Q_OUT,
    Q_PADDED,
    Q_ROWS,
    Q_SHARES,
    Q_STEPS,
    Q_SUMS,
    Q_WIDE,
    Q_WIDES,
    STEP_IDS,
    STEP_LOGITS,
    STEP_ROWS,
    STEP_TOKENS,
    SUM_SLICES,
)  # fmt: skip
from .panels import full_ready, ready_of, ready_place, store_ready
from .reference import FLOOR
from .simd import (
    get_f32,
    get_i8,
    get_i32,
    get_i64,
    get_u8,
    get_u16,
    greater,
    high_digits,
    load_floats,
    max_floats,
    nearest_ints,
    set_f32,
    set_i8,
    set_i32,
    smaller,
    splat_float,
    splat_int,
    store_ints,
    store_low_bytes,
    store_steps,
    sum_ints,
    times_128,
)
from .spans import past_of, span_from, span_of
from .tiles import few_tile, sparse_tokens, tile_of


# -------------------------------------------------------------------------------------------- embedding
@kernel
def run_embed(op, step, first, last):
    """Rows first … last of the step: out = W[id] · scale[id]."""
    ids, out, stride = (
        get_i64(step + 8 * STEP_IDS),
        get_i64(op + 8 * EMBED_OUT),
        get_i64(op + 8 * EMBED_STRIDE),
    )
    bits, steps = get_i64(op + 8 * EMBED_BITS), get_i64(op + 8 * EMBED_STEPS)
    by_position, span = get_i64(op + 8 * EMBED_POSITIONS), span_of(step, 0)
    for token in range(first, last):
        row = get_i64(ids + 8 * token)
        if by_position:
            span = span_from(span, token)
            row = past_of(span) + token
        scale = get_f32(get_i64(op + 8 * EMBED_SCALE) + 4 * row)
        weights = get_i64(op + 8 * EMBED_WEIGHTS) + (row >> 4) * steps * 64 + (row & 15) * 4
        y = out + stride * token
        for s in range(steps):
            for j in range(4):
                byte = weights + 64 * s + j
                if bits == 8:
                    set_f32(y + 16 * s + 4 * j, np.float32(get_i8(byte)) * scale)
                else:
                    nibbles = get_u8(byte)
                    set_f32(y + 32 * s + 4 * j, np.float32((nibbles & 15) - 8) * scale)
                    set_f32(y + 32 * s + 16 + 4 * j, np.float32((nibbles >> 4) - 8) * scale)
        if get_i64(op + 8 * EMBED_STARTS):
            embed_excess(op, row, weights, scale, y)


@kernel
def embed_excess(op, row, weights, scale, y):
    """Replace the row's outliers by (plane + excess) · scale; the row's 4-bit plane begins at `weights`."""
    columns, values = get_i64(op + 8 * EMBED_COLUMNS), get_i64(op + 8 * EMBED_EXCESS)
    starts = get_i64(op + 8 * EMBED_STARTS) + 4 * row
    for entry in range(get_i32(starts), get_i32(starts + 4)):
        value = np.int64(get_i8(values + entry))
        if value != 0:
            column = np.int64(get_u16(columns + 2 * entry))
            nibbles = np.int64(get_u8(weights + (column >> 3) * 64 + (column & 3)))
            plane = ((nibbles >> (column & 4)) & 15) - 8
            set_f32(y + 4 * column, np.float32(plane + value) * scale)


# ------------------------------------------------------------------------------------- rows before a product
@kernel
def reach_of(op, x):
    """The largest |x| · levels / limit of the row: a step of this over `levels` keeps all within limits."""
    shares, top, zero = get_i64(op + 8 * Q_SHARES), splat_float(FLOOR), splat_float(ZERO)
    for at in range(0, 4 * get_i64(op + 8 * Q_PADDED), 64):
        v = load_floats(x + at)
        top = greater(greater(v, zero - v) * load_floats(shares + at), top)
    return max_floats(top)


@inlined
def place_digits(value, k, i, tile, digits, row, many):
    """The low bytes of columns k … k + 16 into place i of the tile and, if `row` is not 0, side by side."""
    if many:
        store_ready(digits + k * tile, value, i, tile)
    elif tile == 1:
        store_low_bytes(digits + k, value)
    else:
        store_steps(digits + k * tile + 4 * i, value, 4 * tile)
    if row:
        store_low_bytes(row + k, value)


@kernel
def quantize_row(op, x, inverse_step, integers, first, last, i, tile, digits, row, many):
    """X = clip(round(x · inverse step), ±limit), int32 at `integers` (which may be x); returns Σ X.

    Columns first … last. Where all columns are flattened both digits go into place, else the low bytes of X,
    which `split_few` or `split_many` then replaces where there are two.
    """
    limits, inverse = get_i64(op + 8 * Q_LIMITS), splat_float(inverse_step)
    total, zero, half = splat_int(np.int32(0)), splat_float(ZERO), splat_int(np.int32(64))
    padded = get_i64(op + 8 * Q_PADDED)
    all_wide = get_i64(op + 8 * Q_WIDES) == padded
    high_digits_at, high_row = digits + padded * tile, row + padded if row else 0
    for k in range(first, last, 16):
        limit = load_floats(limits + 4 * k)
        # limits are whole numbers: clipped first or rounded first is the same
        value = nearest_ints(smaller(greater(load_floats(x + 4 * k) * inverse, zero - limit), limit))
        total = total + value
        if all_wide:
            high = high_digits(value + half)
            place_digits(value - times_128(high), k, i, tile, digits, row, many)
            place_digits(high, k, i, tile, high_digits_at, high_row, many)
        else:
            store_ints(integers + 4 * k, value)
            place_digits(value, k, i, tile, digits, row, many)
    return sum_ints(total)


@inlined
def word_place(column, i, tile):
    """Where token i's digit of a column stands in a tile of few tokens."""
    return ((column >> 2) * tile + i) * 4 + (column & 3)


@inlined
def split_few(op, integers, first, last, i, tile, digits):
    """The flattened channels' two digits, X = 128 · high + low: high ones by groups of 4 columns."""
    wide, count = get_i64(op + 8 * Q_WIDE), get_i64(op + 8 * Q_WIDES)
    if count == get_i64(op + 8 * Q_PADDED):
        return
    high_at = digits + get_i64(op + 8 * Q_PADDED) * tile
    for e in range(get_i64(op + 8 * Q_EXTRAS)):
        if first <= 4 * get_i32(get_i64(op + 8 * Q_GROUPS) + 4 * e) < last:
            set_i32(high_at + (e * tile + i) * 4, np.int32(0))
    for w in range(count):
        column, place = np.int64(get_i32(wide + 4 * w)), np.int64(get_i32(wide + 4 * (count + w)))
        if first <= column < last:
            value = get_i32(integers + 4 * column)
            high = (value + 64) >> 7
            set_i8(digits + word_place(column, i, tile), value - 128 * high)
            set_i8(high_at + word_place(place, i, tile), high)


@inlined
def split_many(op, integers, i, tile, digits):
    """The same, high digits side by side."""
    wide, count = get_i64(op + 8 * Q_WIDE), get_i64(op + 8 * Q_WIDES)
    if count == get_i64(op + 8 * Q_PADDED):
        return
    high_at = digits + get_i64(op + 8 * Q_PADDED) * tile
    for w in range(count):
        column = np.int64(get_i32(wide + 4 * w))
        value = get_i32(integers + 4 * column)
        high = (value + 64) >> 7
        set_i8(digits + ready_place(column, i, tile), value - 128 * high)
        set_i8(high_at + ready_place(w, i, tile), high)
    for w in range(count, (count + 15) // 16 * 16):
        set_i8(high_at + ready_place(w, i, tile), 0)


@inlined
def row_bytes(size):
    """From one token's row of digits to the next one's: rows begin on cache lines."""
    return (size + 63) // 64 * 64


@kernel
def quantize_items(tokens):
    """Of a few tokens: slices of all rows. Of many: tiles, whose tokens lie in the same cache lines."""
    return SUM_SLICES if tokens <= sparse_tokens() else (tokens + full_ready() - 1) // full_ready()


@kernel
def prepare_row(op, x, token, first, last, scratch):
    """Norm or activation of columns first … last: returns where they stand, and 1 / the step.

    A step of the token's own needs the whole row, whatever the slice.
    """
    padded, kind = get_i64(op + 8 * Q_PADDED), get_i64(op + 8 * Q_KIND)
    shares, step_size = get_i64(op + 8 * Q_SHARES), ONE
    if shares:
        first, last = 0, padded
    if kind == NORM:
        norm_row(op, x, padded, first, last, scratch)
        x = scratch
    elif kind == CENTERED:
        center_row(x, get_i64(op + 8 * Q_COLUMNS), scratch)
        norm_row(op, scratch, padded, first, last, scratch)
        x = scratch
    elif kind == GATED:
        up = x + 4 * get_i64(op + 8 * Q_COLUMNS)
        gate_row(get_i64(op + 8 * Q_ACT), x, up, first, last, scratch)
        x = scratch
    elif kind == CLAMPED:
        up = x + 4 * get_i64(op + 8 * Q_COLUMNS)
        clamped_row(x, up, first, last, scratch, get_i64(op + 8 * Q_FLOATS) + 12)
        x = scratch
    elif kind == ACTED:
        act_row(get_i64(op + 8 * Q_ACT), x, first, last, scratch, get_i64(op + 8 * Q_FLOATS) + 12)
        x = scratch
    inverse = get_f32(get_i64(op + 8 * Q_FLOATS))
    if shares:
        reach, levels = reach_of(op, x), inverse
        step_size, inverse = np.float32(reach / levels), np.float32(levels / reach)
    set_f32(get_i64(op + 8 * Q_STEPS) + 4 * token, step_size)
    return x, inverse


@kernel
def row_of(op, step, token):
    """Address of a token's row of floats."""
    number = token
    if get_i64(op + 8 * Q_LAST):
        number = get_i64(get_i64(step + 8 * STEP_ROWS) + 8 * token)
    return get_i64(op + 8 * Q_IN) + get_i64(op + 8 * Q_IN_STRIDE) * number


@kernel
def quantize_slices(op, step, tokens, part, end, scratch):
    """Quarters part … end of the columns of a few tokens, in one go: the sum of all counts as part's."""
    padded = get_i64(op + 8 * Q_PADDED)
    each = (padded + 64 * SUM_SLICES - 1) // (64 * SUM_SLICES) * 64  # a slice's digits share no cache line
    first, last = min(part * each, padded), min(end * each, padded)
    size, few = padded + 4 * get_i64(op + 8 * Q_EXTRAS), get_i64(op + 8 * Q_ROWS) if tokens > 1 else 0
    for token in range(tokens):
        i = token % few_tile()
        tile = tile_of(min(few_tile(), tokens - token + i))
        digits = get_i64(op + 8 * Q_OUT) + (token - i) * size
        x, inverse = prepare_row(op, row_of(op, step, token), token, first, last, scratch)
        row = few + token * row_bytes(size) if few else 0
        total = quantize_row(op, x, inverse, scratch, first, last, i, tile, digits, row, False)
        for other in range(part, end):
            slot = get_i64(op + 8 * Q_SUMS) + 4 * (SUM_SLICES * token + other)
            set_i32(slot, total if other == part else np.int32(0))
        split_few(op, scratch, first, last, i, tile, digits)
        if row:
            split_few(op, scratch, first, last, 0, 1, row)


@kernel
def quantize_tile(op, step, start, count, scratch):
    """`count` tokens from number `start` on, of many."""
    padded, wides = get_i64(op + 8 * Q_PADDED), (get_i64(op + 8 * Q_WIDES) + 15) // 16 * 16
    tile, digits = ready_of(count), get_i64(op + 8 * Q_OUT) + start * (padded + wides)
    for i in range(count):
        x, inverse = prepare_row(op, row_of(op, step, start + i), start + i, 0, padded, scratch)
        total = quantize_row(op, x, inverse, scratch, 0, padded, i, tile, digits, 0, True)
        set_i32(get_i64(op + 8 * Q_SUMS) + 4 * (start + i), total)
        split_many(op, scratch, i, tile, digits)


@kernel
def run_quantize(op, step, first, last, scratch):
    """Items first … last: apply norm or activation, then quantize. `scratch` holds one row of floats."""
    tokens = get_i64(step + 8 * (STEP_LOGITS if get_i64(op + 8 * Q_LAST) else STEP_TOKENS))
    if tokens <= sparse_tokens():
        quantize_slices(op, step, tokens, first, last, scratch)
    else:
        for start in range(first * full_ready(), min(last * full_ready(), tokens), full_ready()):
            quantize_tile(op, step, start, min(full_ready(), tokens - start), scratch)
