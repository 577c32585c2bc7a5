"""Integer matrix products: packed digits [m, k] · packed weights [n, k]ᵀ → float32 [m, n].

One panel of 16 outputs times one tile of M tokens stays in registers for the whole k: 64 bytes of weights are
loaded, split into nibbles where they are 4-bit, and multiplied with every token of the tile. The channels
that
were flattened run again over the same bytes with their high digits (`extras`). Sparse excess is added in
integers: entry by entry for a few tokens, into an unpacked copy of the panel for many.

    y[i, r] = float(Σ_k X[i, k] · W[r, k]) · scale[r] + bias[r]   (+ what was there, for the residual)
"""

from __future__ import annotations

import numpy as np

from .blocks import add_block, from_block, full_tile, has_tile, tile_of, to_block
from .jit import inlined, kernel
from .ops import (
    L_ADD,
    L_BIAS,
    L_BITS,
    L_COLUMNS,
    L_EXCESS,
    L_EXTRAS,
    L_GROUPS,
    L_LAST,
    L_OUT,
    L_PADDED,
    L_PANELS,
    L_SCALE,
    L_SHORTS,
    L_STARTS,
    L_STRIDE,
    L_SUMS,
    L_WEIGHTS,
    L_X,
    SPARSE_TOKENS,
    STEP_LOGITS,
    STEP_TOKENS,
)  # fmt: skip
from .simd import (
    add_scaled_shorts,
    dot,
    get_i8,
    get_i16,
    get_i32,
    get_i64,
    get_u16,
    high_nibbles,
    int8_offset,
    load_bytes,
    load_floats,
    load_ints,
    low_nibbles,
    minus_eight,
    offset_int8,
    prefetch,
    set_i8,
    set_i32,
    splat_int,
    store_bytes,
    store_floats,
    store_sums,
    store_tile,
    tile_times_128,
    to_floats,
    zero_ints,
    zero_sums,
)  # fmt: skip


def _product(tokens: int, bits: int):
    """The product of one panel and one tile, as int32 [tokens, 16] at `out`."""

    @inlined
    def four_columns(weights, group):
        if bits == 4:
            packed = load_bytes(weights + (group >> 1) * 64)
            return high_nibbles(packed) if group & 1 else low_nibbles(packed)
        return offset_int8(load_bytes(weights + group * 64))

    @inlined
    def product(weights, padded, x, extras, groups, out):
        acc = zero_ints(tokens)
        high = x + padded * tokens
        for e in range(extras):
            acc = dot(acc, four_columns(weights, get_i32(groups + 4 * e)), high + e * 4 * tokens, bits)
        acc = to_block(tile_times_128(acc), bits)
        for block in range(padded // 16):
            acc = add_block(acc, weights + 32 * bits * block, x + 16 * tokens * block, tokens, bits)
        store_tile(out, 64, from_block(acc, tokens, bits))

    return product


_int4_1, _int4_2, _int4_4, _int4_6, _int4_8, _int4_16 = (_product(m, 4) for m in (1, 2, 4, 6, 8, 16))
_int8_1, _int8_2, _int8_4, _int8_6, _int8_8, _int8_16 = (_product(m, 8) for m in (1, 2, 4, 6, 8, 16))


@kernel
def product_int4(tile, weights, padded, x, extras, groups, out):
    if has_tile(1) and tile == 1:
        _int4_1(weights, padded, x, extras, groups, out)
    elif has_tile(2) and tile == 2:
        _int4_2(weights, padded, x, extras, groups, out)
    elif has_tile(4) and tile == 4:
        _int4_4(weights, padded, x, extras, groups, out)
    elif has_tile(6) and tile == 6:
        _int4_6(weights, padded, x, extras, groups, out)
    elif has_tile(8) and tile == 8:
        _int4_8(weights, padded, x, extras, groups, out)
    elif has_tile(16) and tile == 16:
        _int4_16(weights, padded, x, extras, groups, out)


@kernel
def product_int8(tile, weights, padded, x, extras, groups, out):
    if has_tile(1) and tile == 1:
        _int8_1(weights, padded, x, extras, groups, out)
    elif has_tile(2) and tile == 2:
        _int8_2(weights, padded, x, extras, groups, out)
    elif has_tile(4) and tile == 4:
        _int8_4(weights, padded, x, extras, groups, out)
    elif has_tile(6) and tile == 6:
        _int8_6(weights, padded, x, extras, groups, out)
    elif has_tile(8) and tile == 8:
        _int8_8(weights, padded, x, extras, groups, out)
    elif has_tile(16) and tile == 16:
        _int8_16(weights, padded, x, extras, groups, out)


UNROLLED = 4  # entries of one token at a time: up to 3 beyond a panel's last are read and summed, never used
LINES = 2  # of the next panel's weights, fetched meanwhile: or memory would rest while entries are added


@inlined
def _excess_1(starts, columns, values, shorts, sums, out, ahead):
    """As the others, in scalar registers, for one token. `ahead` is where the next panel's weights begin."""
    first, total = get_i32(starts), np.int32(0)
    count = get_i32(starts + 64) - first
    columns, values = columns + 2 * first, values + first
    set_i32(sums, total)
    for group in range((count + UNROLLED - 1) // UNROLLED):
        for line in range(LINES):
            prefetch(ahead + 64 * (LINES * group + line))
        for j in range(UNROLLED):
            entry = UNROLLED * group + j
            x = get_i16(shorts + 2 * np.int64(get_u16(columns + 2 * entry)))
            total = np.int32(total + np.int32(x) * np.int32(get_i8(values + entry)))
            set_i32(sums + 4 * entry + 4, total)
    low = np.int32(0)
    for r in range(16):
        high = get_i32(sums + 4 * (get_i32(starts + 4 * r + 4) - first))
        set_i32(out + 4 * r, get_i32(out + 4 * r) + high - low)
        low = high


def _excess(tokens: int):
    """Sparse entries of one panel for a tile of constant size.

    Entries come row by row. The sum runs on across rows and every partial sum is stored: a row's share is the
    difference of two of them. So there is neither a branch per row nor an add to memory that the next must
    await.
    """

    @inlined
    def add(starts, columns, values, shorts, sums, out):
        first, total = get_i32(starts), zero_sums(tokens)
        store_sums(sums, total)
        at = sums
        for entry in range(first, get_i32(starts + 64)):
            at += 4 * tokens
            x = shorts + 2 * tokens * np.int64(get_u16(columns + 2 * entry))
            total = add_scaled_shorts(total, x, np.int32(get_i8(values + entry)))
            store_sums(at, total)
        for r in range(16):
            low = sums + 4 * tokens * (get_i32(starts + 4 * r) - first)
            high = sums + 4 * tokens * (get_i32(starts + 4 * r + 4) - first)
            for i in range(tokens):
                y = out + 64 * i + 4 * r
                set_i32(y, get_i32(y) + get_i32(high + 4 * i) - get_i32(low + 4 * i))

    return add


_excess_2, _excess_4, _excess_6, _excess_8 = (_excess(m) for m in (2, 4, 6, 8))


@kernel
def add_excess(op, panel, token, tile, sums, out, ahead):
    """out[i, r] += X[i, k] · excess for each sparse entry (row r, column k) of the panel.

    sums: scratch for the partial sums, int32 [entries of the panel + UNROLLED, tile].
    """
    columns, values, shorts = (
        get_i64(op + 8 * L_COLUMNS),
        get_i64(op + 8 * L_EXCESS),
        get_i64(op + 8 * L_SHORTS) + 2 * token * get_i64(op + 8 * L_PADDED),
    )
    starts = get_i64(op + 8 * L_STARTS) + 64 * panel
    if has_tile(1) and tile == 1:
        _excess_1(starts, columns, values, shorts, sums, out, ahead)
    elif has_tile(2) and tile == 2:
        _excess_2(starts, columns, values, shorts, sums, out)
    elif has_tile(4) and tile == 4:
        _excess_4(starts, columns, values, shorts, sums, out)
    elif has_tile(6) and tile == 6:
        _excess_6(starts, columns, values, shorts, sums, out)
    elif has_tile(8) and tile == 8:
        _excess_8(starts, columns, values, shorts, sums, out)


@kernel
def expand_panel(op, panel, weights, out):
    """A 4-bit panel with its excess as a plain int8 panel [padded/4 steps, 64] at `out`."""
    padded = get_i64(op + 8 * L_PADDED)
    for step in range(padded // 8):
        packed = load_bytes(weights + 64 * step)
        store_bytes(out + 128 * step, minus_eight(low_nibbles(packed)))
        store_bytes(out + 128 * step + 64, minus_eight(high_nibbles(packed)))
    columns, values = get_i64(op + 8 * L_COLUMNS), get_i64(op + 8 * L_EXCESS)
    starts = get_i64(op + 8 * L_STARTS) + 64 * panel
    for r in range(16):
        for entry in range(get_i32(starts + 4 * r), get_i32(starts + 4 * r + 4)):
            column = np.int64(get_u16(columns + 2 * entry))
            at = out + (column >> 2) * 64 + r * 4 + (column & 3)
            set_i8(at, get_i8(at) + get_i8(values + entry))


@kernel
def finish_tile(op, panel, offset, first, count, acc):
    """int32 [count, 16] → float rows first … first + count of the output."""
    scale = load_floats(get_i64(op + 8 * L_SCALE) + 64 * panel)
    bias = load_floats(get_i64(op + 8 * L_BIAS) + 64 * panel)
    stride, add = get_i64(op + 8 * L_STRIDE), get_i64(op + 8 * L_ADD)
    out = get_i64(op + 8 * L_OUT) + stride * first + 64 * panel
    sums = get_i64(op + 8 * L_SUMS) + 4 * first
    for i in range(count):
        shift = splat_int(get_i32(sums + 4 * i) * offset)
        y = to_floats(load_ints(acc + 64 * i) - shift) * scale + bias
        if add:
            y = load_floats(out + stride * i) + y
        store_floats(out + stride * i, y)


@kernel
def run_linear(op, step, first, last, scratch):
    """Panels first … last for all tokens of the step. `scratch` holds 1 KiB and an unpacked panel."""
    wants_all = get_i64(op + 8 * L_LAST) == 0
    tokens = get_i64(step + 8 * STEP_TOKENS) if wants_all else get_i64(step + 8 * STEP_LOGITS)
    bits, padded, panels_at = (
        get_i64(op + 8 * L_BITS),
        get_i64(op + 8 * L_PADDED),
        get_i64(op + 8 * L_WEIGHTS),
    )
    extras, groups, x = get_i64(op + 8 * L_EXTRAS), get_i64(op + 8 * L_GROUPS), get_i64(op + 8 * L_X)
    sparse = get_i64(op + 8 * L_STARTS) != 0
    for panel in range(first, last):
        weights = panels_at + panel * padded * 2 * bits
        wide = bits == 8
        if sparse and tokens > SPARSE_TOKENS:
            expand_panel(op, panel, weights, scratch + 1024)
            weights, wide = scratch + 1024, True
        for token in range(0, tokens, full_tile()):
            count = min(full_tile(), tokens - token)
            tile = tile_of(count)
            digits = x + token * (padded + 4 * extras)
            if wide:
                product_int8(tile, weights, padded, digits, extras, groups, scratch)
            else:
                product_int4(tile, weights, padded, digits, extras, groups, scratch)
            if sparse and not wide:
                add_excess(op, panel, token, tile, scratch + 1024, scratch, weights + padded * 2 * bits)
            finish_tile(op, panel, int8_offset() if wide else 8, token, count, scratch)


@kernel
def linear_items(op):
    return get_i64(op + 8 * L_PANELS)


@kernel
def linear_bytes(op):
    """Bytes of a panel: what a chunk of work costs when memory is the limit."""
    return get_i64(op + 8 * L_PADDED) * 2 * get_i64(op + 8 * L_BITS)
