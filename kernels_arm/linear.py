"""Integer matrix products: packed digits [m, k] · packed weights [n, k]ᵀ → float32 [m, n].

One panel of 16 outputs times one tile of M tokens stays in registers for the whole k: 64 bytes of weights are
loaded, split into nibbles where they are 4-bit, and multiplied with every token of the tile. The channels
that were flattened run again over the same bytes with their high digits (`extras`). Sparse excess (excess.py)
is added in integers: to the sums of a few tokens, or to an unpacked copy of the panel for many.

    y[i, r] = float(Σ_k X[i, k] · W[r, k]) · scale[r] · step[i] + bias[r]   (+ what was there: the residual)

step[i] is 1 for FlatLinear, whose scale holds the step of the activations.
"""

from __future__ import annotations

from .blocks import (
    AHEAD,
    add_block,
    add_groups,
    from_block,
    from_groups,
    full_tile,
    groups_at_once,
    has_tile,
    prefetch,
    tile_of,
    to_block,
    to_groups,
)
from .excess import add_excess, expand_excess, fetch_excess
from .jit import inlined, kernel
from .ops import (
    L_ADD,
    L_BIAS,
    L_BITS,
    L_EVENS,
    L_EXTRAS,
    L_GROUPS,
    L_LAST,
    L_OUT,
    L_PADDED,
    L_PANELS,
    L_ROWS,
    L_SCALE,
    L_STARTS,
    L_STEPS,
    L_STRIDE,
    L_SUMS,
    L_WEIGHTS,
    L_X,
    SPARSE_TOKENS,
    STEP_LOGITS,
    STEP_TOKENS,
    SUM_SLICES,
)  # fmt: skip
from .pointwise import row_bytes, sum_slices
from .simd import (
    get_f32,
    get_i32,
    get_i64,
    high_nibbles,
    int8_offset,
    load_bytes,
    load_floats,
    load_ints,
    low_nibbles,
    minus_eight,
    plus_128_times,
    splat_float,
    splat_int,
    store_bytes,
    store_floats,
    store_tile,
    to_floats,
    zero_ints,
)  # fmt: skip


def _add_wide(tokens: int, bits: int, high: int):
    @inlined
    def add_wide(tile, weights, groups, first, last, digits):
        """Add the groups first … last of `groups` times their high digits to a tile in plain form."""
        some = to_groups(tile)
        together = groups_at_once(tokens)
        rest = first + (last - first) // together * together
        for e in range(first, rest, together):
            some = add_groups(some, weights, groups + 4 * e, digits + 4 * tokens * e, tokens, bits, high)
        tile = from_groups(some, tokens)
        for e in range(rest, last):
            tile = add_groups(tile, weights, groups + 4 * e, digits + 4 * tokens * e, tokens, bits, high)
        return tile

    return add_wide


def _product(tokens: int, bits: int):
    """The product of one panel and one tile, as int32 [tokens, 16] at `out`."""
    add_low, add_high = _add_wide(tokens, bits, 0), _add_wide(tokens, bits, 1)

    @inlined
    def product(weights, padded, x, extras, evens, groups, out):
        acc = to_block(zero_ints(tokens), bits)
        for block in range(padded // 16):
            acc = add_block(acc, weights + 32 * bits * block, x + 16 * tokens * block, tokens, bits)
        acc = from_block(acc, tokens, bits)
        if tokens == 1:
            for line in range(0, AHEAD, 64):  # the next panel's first: memory shall not rest meanwhile
                prefetch(weights + 2 * bits * padded + line)
        # last: memory gives a panel fast only from end to end
        digits = x + padded * tokens
        if bits == 4:
            high = add_low(zero_ints(tokens), weights, groups, 0, evens, digits)
            high = add_high(high, weights, groups, evens, extras, digits)
        else:
            high = add_low(zero_ints(tokens), weights, groups, 0, extras, digits)
        store_tile(out, 64, plus_128_times(acc, high))

    return product


_int4_1, _int4_2, _int4_4, _int4_6, _int4_8, _int4_16 = (_product(m, 4) for m in (1, 2, 4, 6, 8, 16))
_int8_1, _int8_2, _int8_4, _int8_6, _int8_8, _int8_16 = (_product(m, 8) for m in (1, 2, 4, 6, 8, 16))


@kernel
def product_int4(tile, weights, padded, x, extras, evens, groups, out):
    if has_tile(1) and tile == 1:
        _int4_1(weights, padded, x, extras, evens, groups, out)
    elif has_tile(2) and tile == 2:
        _int4_2(weights, padded, x, extras, evens, groups, out)
    elif has_tile(4) and tile == 4:
        _int4_4(weights, padded, x, extras, evens, groups, out)
    elif has_tile(6) and tile == 6:
        _int4_6(weights, padded, x, extras, evens, groups, out)
    elif has_tile(8) and tile == 8:
        _int4_8(weights, padded, x, extras, evens, groups, out)
    elif has_tile(16) and tile == 16:
        _int4_16(weights, padded, x, extras, evens, groups, out)


@kernel
def product_int8(tile, weights, padded, x, extras, evens, groups, out):
    if has_tile(1) and tile == 1:
        _int8_1(weights, padded, x, extras, evens, groups, out)
    elif has_tile(2) and tile == 2:
        _int8_2(weights, padded, x, extras, evens, groups, out)
    elif has_tile(4) and tile == 4:
        _int8_4(weights, padded, x, extras, evens, groups, out)
    elif has_tile(6) and tile == 6:
        _int8_6(weights, padded, x, extras, evens, groups, out)
    elif has_tile(8) and tile == 8:
        _int8_8(weights, padded, x, extras, evens, groups, out)
    elif has_tile(16) and tile == 16:
        _int8_16(weights, padded, x, extras, evens, groups, out)


@kernel
def expand_panel(op, panel, weights, out):
    """A 4-bit panel with its excess as a plain int8 panel [padded/4 steps, 64] at `out`."""
    padded = get_i64(op + 8 * L_PADDED)
    for step in range(padded // 8):
        packed = load_bytes(weights + 64 * step)
        store_bytes(out + 128 * step, minus_eight(low_nibbles(packed)))
        store_bytes(out + 128 * step + 64, minus_eight(high_nibbles(packed)))
    expand_excess(op, panel, out)


@kernel
def finish_tile(op, panel, offset, first, count, slices, acc):
    """int32 [count, 16] → float rows first … first + count of the output."""
    scale = load_floats(get_i64(op + 8 * L_SCALE) + 64 * panel)
    bias = load_floats(get_i64(op + 8 * L_BIAS) + 64 * panel)
    stride, add = get_i64(op + 8 * L_STRIDE), get_i64(op + 8 * L_ADD)
    out = get_i64(op + 8 * L_OUT) + stride * first + 64 * panel
    sums, steps = get_i64(op + 8 * L_SUMS) + 4 * SUM_SLICES * first, get_i64(op + 8 * L_STEPS) + 4 * first
    for i in range(count):
        total = get_i32(sums + 4 * SUM_SLICES * i)
        if slices > 1:
            for part in range(1, SUM_SLICES):
                total += get_i32(sums + 4 * (SUM_SLICES * i + part))
        shift = splat_int(total * offset)
        y = to_floats(load_ints(acc + 64 * i) - shift) * scale
        y = y * splat_float(get_f32(steps + 4 * i)) + bias
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
    evens = get_i64(op + 8 * L_EVENS)
    sparse, row_size = get_i64(op + 8 * L_STARTS) != 0, padded + 4 * extras
    rows, slices = x if tokens == 1 else get_i64(op + 8 * L_ROWS), sum_slices(tokens)
    for panel in range(first, last):
        weights = panels_at + panel * padded * 2 * bits
        wide = bits == 8
        if sparse and tokens > SPARSE_TOKENS:
            expand_panel(op, panel, weights, scratch + 1024)
            weights, wide = scratch + 1024, True
        elif sparse:
            fetch_excess(op, panel)
        for token in range(0, tokens, full_tile()):
            count = min(full_tile(), tokens - token)
            tile = tile_of(count)
            digits = x + token * row_size
            if wide:
                product_int8(tile, weights, padded, digits, extras, evens, groups, scratch)
            else:
                product_int4(tile, weights, padded, digits, extras, evens, groups, scratch)
            if sparse and not wide:
                add_excess(op, panel, rows + token * row_bytes(row_size), row_bytes(row_size), count, scratch)
            finish_tile(op, panel, int8_offset() if wide else 8, token, count, slices, scratch)


@kernel
def linear_items(op):
    return get_i64(op + 8 * L_PANELS)


@kernel
def linear_bytes(op):
    """Bytes of a panel: what a chunk of work costs when memory is the limit."""
    return get_i64(op + 8 * L_PADDED) * 2 * get_i64(op + 8 * L_BITS)
