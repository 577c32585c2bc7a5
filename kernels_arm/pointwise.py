"""Row operations: embedding, norm, gated activation, quantization, rotary embedding and cache append."""

from __future__ import annotations

import numpy as np

from .blocks import full_tile, tile_of
from .jit import inlined, kernel
from .ops import (
    EMBED_BITS,
    EMBED_COLUMNS,
    EMBED_EXCESS,
    EMBED_OUT,
    EMBED_SCALE,
    EMBED_STARTS,
    EMBED_STEPS,
    EMBED_STRIDE,
    EMBED_WEIGHTS,
    NORM,
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
    Q_WEIGHT,
    R_CONTEXT,
    R_COS,
    R_GROUPS,
    R_HEADS,
    R_KEYS,
    R_QKV,
    R_SIN,
    R_SIZE,
    R_STRIDE,
    R_VALUES,
    SPARSE_TOKENS,
    STEP_IDS,
    STEP_LOGITS,
    STEP_ROWS,
    STEP_TOKENS,
    SUM_SLICES,
    SWIGLU,
)  # fmt: skip
from .pieces import past_of, piece_from, piece_of, slot_of
from .reference import EXP_HIGH, EXP_LOW, EXP_POLYNOMIAL, FLOOR, LN2_HIGH, LN2_LOW, LOG2E
from .simd import (
    add_doubles,
    add_squares,
    get_f32,
    get_i8,
    get_i32,
    get_i64,
    get_u8,
    get_u16,
    greater,
    high_digits,
    load_doubles,
    load_floats,
    max_floats,
    no_doubles,
    power_of_two,
    round_even,
    set_f32,
    set_i32,
    smaller,
    splat_float,
    splat_int,
    sqrt_f64,
    store_floats,
    store_steps,
    sum_doubles,
    sum_ints,
    times_128,
    to_ints,
    where_greater,
    zero_below,
)  # fmt: skip

ONE, ZERO = np.float32(1), np.float32(0)
WIDE, HALF = np.float32(127), np.int32(64)  # limits above WIDE have two digits; low ones are −64 … 63


@inlined
def exp16(x):
    """e^x of 16 lanes, step for step `reference.exp`."""
    low = splat_float(EXP_LOW)
    clipped = smaller(greater(x, low), splat_float(EXP_HIGH))
    n = round_even(clipped * splat_float(LOG2E))
    r = (clipped - n * splat_float(LN2_HIGH)) - n * splat_float(LN2_LOW)
    p = splat_float(EXP_POLYNOMIAL[0])
    p = p * r + splat_float(EXP_POLYNOMIAL[1])
    p = p * r + splat_float(EXP_POLYNOMIAL[2])
    p = p * r + splat_float(EXP_POLYNOMIAL[3])
    p = p * r + splat_float(EXP_POLYNOMIAL[4])
    p = p * r + splat_float(EXP_POLYNOMIAL[5])
    p = (p * (r * r) + r) + splat_float(ONE)
    return zero_below(p * power_of_two(to_ints(n)), x, low)


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
    for token in range(first, last):
        row = get_i64(ids + 8 * token)
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
            embed_excess(op, row, scale, y)


@kernel
def embed_excess(op, row, scale, y):
    """Replace the row's outliers by (plane + excess) · scale: the plane there is at its bound, −8 or 7."""
    columns, values = get_i64(op + 8 * EMBED_COLUMNS), get_i64(op + 8 * EMBED_EXCESS)
    starts = get_i64(op + 8 * EMBED_STARTS) + 4 * row
    for entry in range(get_i32(starts), get_i32(starts + 4)):
        value = np.int64(get_i8(values + entry))
        if value != 0:
            total = value + (7 if value > 0 else -8)
            set_f32(y + 4 * np.int64(get_u16(columns + 2 * entry)), np.float32(total) * scale)


# ------------------------------------------------------------------------------------- rows before linear
@inlined
def inverse_norm(op, x, padded):
    """1 / sqrt(mean(x²) + ε). Lanes beyond the row's end hold zeros."""
    floats, squares, others = get_i64(op + 8 * Q_FLOATS), no_doubles(), no_doubles()
    for at in range(0, 4 * padded, 64):
        squares = add_squares(squares, load_doubles(x + at))
        others = add_squares(others, load_doubles(x + at + 32))
    mean = sum_doubles(add_doubles(squares, others)) / np.float64(get_f32(floats + 8))
    return np.float32(1 / sqrt_f64(mean + np.float64(get_f32(floats + 4))))


@inlined
def norm_row(op, x, inverse, first, last, y):
    """y = x · inverse · weight, columns first … last."""
    weight, factor = get_i64(op + 8 * Q_WEIGHT), splat_float(inverse)
    for at in range(4 * first, 4 * last, 64):
        store_floats(y + at, (load_floats(x + at) * factor) * load_floats(weight + at))


@inlined
def swiglu_row(op, x, first, last, y):
    """y = silu(gate) · up, gate and up being the halves of x. Lanes beyond the end hold anything finite."""
    up, one, zero = x + 4 * get_i64(op + 8 * Q_COLUMNS), splat_float(ONE), splat_float(ZERO)
    for at in range(4 * first, 4 * last, 64):
        gate = load_floats(x + at)
        store_floats(y + at, (gate / (one + exp16(zero - gate))) * load_floats(up + at))


@kernel
def reach_of(op, x):
    """The largest |x| · levels / limit of the row: a step of this over `levels` keeps all within limits."""
    shares, top, zero = get_i64(op + 8 * Q_SHARES), splat_float(FLOOR), splat_float(ZERO)
    for at in range(0, 4 * get_i64(op + 8 * Q_PADDED), 64):
        v = load_floats(x + at)
        top = greater(greater(v, zero - v) * load_floats(shares + at), top)
    return max_floats(top)


def _quantizer(wide: bool):
    @inlined
    def quantize(op, x, inverse_step, first, last, digits, stride, row, high):
        """X = clip(round(x · inverse step), ±limit): low digits, 4 columns each `stride` bytes; returns Σ X.

        Where `row` is not 0, they go there too, side by side. Of `wide` rows X = 128 · H + L in flattened
        channels, and all high digits (0 in the others) go to `high`, side by side.
        """
        limits, inverse = get_i64(op + 8 * Q_LIMITS), splat_float(inverse_step)
        total, zero = splat_int(np.int32(0)), splat_float(ZERO)
        for k in range(first, last, 16):
            limit = load_floats(limits + 4 * k)
            steps = round_even(load_floats(x + 4 * k) * inverse)
            value = to_ints(smaller(greater(steps, zero - limit), limit))
            total = total + value
            if wide:
                above = where_greater(limit, splat_float(WIDE), high_digits(value + splat_int(HALF)))
                store_steps(high + k, above, 4)
                value = value - times_128(above)
            store_steps(digits + k // 4 * stride, value, stride)
            if row:
                store_steps(row + k, value, 4)
        return sum_ints(total)

    return quantize


_quantize_plain, _quantize_wide = _quantizer(False), _quantizer(True)


@kernel
def quantize_row(op, x, inverse_step, first, last, i, tile, digits, row, high):
    """Columns first … last of a row, into place i of its tile and, if `row` is not 0, there; returns Σ X.

    `high` has room for a byte a column.
    """
    padded, extras = get_i64(op + 8 * Q_PADDED), get_i64(op + 8 * Q_EXTRAS)
    groups = get_i64(op + 8 * Q_GROUPS)
    if extras == 0:
        return _quantize_plain(op, x, inverse_step, first, last, digits + 4 * i, 4 * tile, row, high)
    total = _quantize_wide(op, x, inverse_step, first, last, digits + 4 * i, 4 * tile, row, high)
    own, own_row = digits + padded * tile + 4 * i, row + padded
    for e in range(extras):
        column = 4 * np.int64(get_i32(groups + 4 * e))
        if first <= column < last:
            four = get_i32(high + column)
            set_i32(own + 4 * tile * e, four)
            if row:
                set_i32(own_row + 4 * e, four)
    return total


@inlined
def row_bytes(size):
    """From one token's row of digits to the next one's: rows begin on cache lines."""
    return (size + 63) // 64 * 64


@inlined
def slice_columns(padded):
    """Columns of a slice: what one item of a few tokens' quantization does of every row."""
    return (padded + 64 * SUM_SLICES - 1) // (64 * SUM_SLICES) * 64


@kernel
def quantize_items(tokens):
    """Of a few tokens: slices of all rows. Of many: tiles."""
    return SUM_SLICES if tokens <= full_tile() else (tokens + full_tile() - 1) // full_tile()


@inlined
def sum_slices(tokens):
    """Into how many parts a row's sum is cut."""
    return SUM_SLICES if tokens <= full_tile() else 1


@kernel
def quantize_tile(op, rows, numbers, start, count, few, first, last, sums, scratch):
    """`count` tokens from number `start` on, columns first … last: norm or activation, digits, their sums.

    `numbers` are the rows' numbers, or 0: one after the other. A step per token needs whole rows.
    """
    padded, stride = get_i64(op + 8 * Q_PADDED), get_i64(op + 8 * Q_IN_STRIDE)
    shares = get_i64(op + 8 * Q_SHARES)
    size, kind = padded + 4 * get_i64(op + 8 * Q_EXTRAS), get_i64(op + 8 * Q_KIND)
    tile, digits, high = tile_of(count), get_i64(op + 8 * Q_OUT) + start * size, scratch + 4 * padded
    begin, end = (0, padded) if shares else (first, last)
    for token in range(start, start + count):
        x = rows + stride * (get_i64(numbers + 8 * token) if numbers else token)
        if kind == NORM:
            norm_row(op, x, inverse_norm(op, x, padded), begin, end, scratch)
            x = scratch
        elif kind == SWIGLU:
            swiglu_row(op, x, begin, end, scratch)
            x = scratch
        step_size, inverse = ONE, get_f32(get_i64(op + 8 * Q_FLOATS))
        if shares:
            reach, levels = reach_of(op, x), inverse
            step_size, inverse = np.float32(reach / levels), np.float32(levels / reach)
        set_f32(get_i64(op + 8 * Q_STEPS) + 4 * token, step_size)
        row = few + token * row_bytes(size) if few else 0
        total = quantize_row(op, x, inverse, first, last, token - start, tile, digits, row, high)
        set_i32(sums + 4 * SUM_SLICES * token, total)


@kernel
def run_quantize(op, step, first, last, scratch):
    """Items first … last. `scratch` holds a row of floats and one of bytes.

    Of many a tile is one thread's: its tokens lie word by word in the same cache lines.
    """
    wants_all = get_i64(op + 8 * Q_LAST) == 0
    tokens, wanted = get_i64(step + 8 * STEP_TOKENS), get_i64(step + 8 * STEP_LOGITS)
    rows, numbers = get_i64(op + 8 * Q_IN), 0 if wants_all else get_i64(step + 8 * STEP_ROWS)
    tokens, padded = tokens if wants_all else wanted, get_i64(op + 8 * Q_PADDED)
    sums = get_i64(op + 8 * Q_SUMS)
    few = get_i64(op + 8 * Q_ROWS) if 1 < tokens <= SPARSE_TOKENS else 0
    if sum_slices(tokens) == 1:
        for start in range(first * full_tile(), min(last * full_tile(), tokens), full_tile()):
            count = min(full_tile(), tokens - start)
            quantize_tile(op, rows, numbers, start, count, few, 0, padded, sums, scratch)
        return
    each = slice_columns(padded)
    for part in range(first, last):
        begin, end = min(part * each, padded), min((part + 1) * each, padded)
        quantize_tile(op, rows, numbers, 0, tokens, few, begin, end, sums + 4 * part, scratch)


# --------------------------------------------------------------------------------------- rotary embedding
@inlined
def rotate_head(x, cos, sin, half, y, y_stride):
    """Rotate one head from x to y; y's elements are y_stride bytes apart."""
    for i in range(half):
        a, b = get_f32(x + 4 * i), get_f32(x + 4 * (half + i))
        c, s = get_f32(cos + 4 * i), get_f32(sin + 4 * i)
        set_f32(y + y_stride * i, a * c - b * s)
        set_f32(y + y_stride * (half + i), b * c + a * s)


@kernel
def run_rotate(op, step, first, last):
    """Tokens first … last: rotate q in place, rotate k into the cache (transposed), copy v into the cache."""
    heads, groups, size = get_i64(op + 8 * R_HEADS), get_i64(op + 8 * R_GROUPS), get_i64(op + 8 * R_SIZE)
    context, keys, values = get_i64(op + 8 * R_CONTEXT), get_i64(op + 8 * R_KEYS), get_i64(op + 8 * R_VALUES)
    half, width = size // 2, (size + 15) // 16 * 16
    piece = piece_of(step, 0)
    for token in range(first, last):
        piece = piece_from(piece, token)
        position = past_of(piece) + token
        row = get_i64(op + 8 * R_QKV) + get_i64(op + 8 * R_STRIDE) * token
        cos = get_i64(op + 8 * R_COS) + 4 * half * position
        sin = get_i64(op + 8 * R_SIN) + 4 * half * position
        for head in range(heads):
            rotate_head(row + 4 * size * head, cos, sin, half, row + 4 * size * head, 4)
        for group in range(groups):
            k = row + 4 * size * (heads + group)
            v = row + 4 * size * (heads + groups + group)
            cached = groups * slot_of(piece) + group
            block = cached * (context // 16) + (position >> 4)
            rotate_head(k, cos, sin, half, keys + block * size * 64 + 4 * (position & 15), 64)
            out = values + 4 * width * (cached * context + position)
            for i in range(size):
                set_f32(out + 4 * i, get_f32(v + 4 * i))
