"""Integer products: packed digits [m, k] · packed weights [n, k]ᵀ → float32 [m, n] (many tokens: many.py).

One panel of 16 outputs times one tile of M tokens stays in registers for the whole k: 64 bytes of weights are
loaded, split into nibbles where they are 4-bit, and multiplied with every token of the tile. The channels
that were flattened run again over the same bytes with their high digits (`extras`). Sparse excess (excess.py)
is added to the integer sums.

    y[i, r] = float(Σ_k X[i, k] · W[r, k]) · scale[r] · step[i] + bias[r]   (+ the residual that was there)

step[i] is 1 for FlatLinear, whose scale holds the step of the activations.
"""

from __future__ import annotations

from .blocks import FIRST, add_block, add_blocks, prefetch, straight
from .dots import int8_offset
from .excess import add_excess, fetch_excess
from .forms import from_block, to_block
from .groups import add_four_groups, add_group, by_fours
from .jit import inlined, kernel
from .many import run_many
from .ops import (
    P_ADD,
    P_BIAS,
    P_BITS,
    P_EVENS,
    P_EXTRAS,
    P_GROUPS,
    P_LAST,
    P_OUT,
    P_PADDED,
    P_PANELS,
    P_ROWS,
    P_SCALE,
    P_STARTS,
    P_STEPS,
    P_STRIDE,
    P_SUMS,
    P_WEIGHTS,
    P_X,
    STEP_LOGITS,
    STEP_TOKENS,
    SUM_SLICES,
)  # fmt: skip
from .pointwise import row_bytes
from .simd import (
    get_f32,
    get_i32,
    get_i64,
    load_floats,
    load_ints,
    splat_float,
    splat_int,
    store_floats,
    to_floats,
)
from .tiles import (
    few_tile,
    has_tile,
    plus_128_times,
    sparse_tokens,
    store_tile,
    tile_of,
    tile_times_128,
    zero_ints,
)


def _range(tokens: int, bits: int, odd: int):
    """Adds the groups number first … last, of nibbles all even or all odd ones."""

    @inlined
    def add_range(high, weights, groups, first, last, digits):
        fours = (last - first) // 4 if by_fours(tokens) else 0
        for e in range(first, first + 4 * fours, 4):
            high = add_four_groups(high, weights, groups + 4 * e, digits + 4 * tokens * e, bits, odd)
        for e in range(first + 4 * fours, last):
            high = add_group(high, weights, groups + 4 * e, digits + 4 * tokens * e, bits, odd)
        return high

    return add_range


def _product(tokens: int, bits: int):
    """The product of one panel and one tile, as int32 [tokens, 16] at `out`."""
    add_range, add_odd = _range(tokens, bits, 0), _range(tokens, bits, 1)

    @inlined
    def add_all(acc, weights, padded, x):
        fours = padded // 64 if straight(tokens) else 0
        for four in range(fours):
            acc = add_blocks(acc, weights + 128 * bits * four, x + 64 * tokens * four, tokens, bits)
        for block in range(4 * fours, padded // 16):
            acc = add_block(acc, weights + 32 * bits * block, x + 16 * tokens * block, tokens, bits)
        return acc

    @inlined
    def product(weights, padded, x, extras, evens, groups, out):
        acc, digits, all_wide = to_block(zero_ints(tokens), bits), x + padded * tokens, 4 * extras == padded
        if all_wide:
            acc = tile_times_128(add_all(acc, weights, padded, digits))
        acc = from_block(add_all(acc, weights, padded, x), tokens, bits)
        if tokens == 1:
            for line in range(0, FIRST, 64):  # the next panel's first: memory shall not rest meanwhile
                prefetch(weights + 2 * bits * padded + line)
        if all_wide:
            store_tile(out, 64, acc)
            return
        # last: memory gives a panel fast only from end to end
        high = zero_ints(tokens)
        if bits == 4:
            high = add_range(high, weights, groups, 0, evens, digits)
            high = add_odd(high, weights, groups, evens, extras, digits)
        else:
            high = add_range(high, weights, groups, 0, extras, digits)
        store_tile(out, 64, plus_128_times(acc, high))

    return product


_int4_1, _int4_2, _int4_4, _int4_6, _int4_8 = (_product(m, 4) for m in (1, 2, 4, 6, 8))
_int8_1, _int8_2, _int8_4, _int8_6, _int8_8 = (_product(m, 8) for m in (1, 2, 4, 6, 8))


@kernel
def product_int4(tile, weights, padded, x, extras, evens, groups, out):
    """A panel of nibbles times a tile of digits at x: int32 [tile, 16] at `out`."""
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


@kernel
def product_int8(tile, weights, padded, x, extras, evens, groups, out):
    """The same of a panel of int8."""
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


@kernel
def finish_tile(op, panel, offset, first, count, acc):
    """int32 [count, 16] → float rows first … first + count of the output."""
    scale = load_floats(get_i64(op + 8 * P_SCALE) + 64 * panel)
    bias = load_floats(get_i64(op + 8 * P_BIAS) + 64 * panel)
    stride, add = get_i64(op + 8 * P_STRIDE), get_i64(op + 8 * P_ADD)
    out = get_i64(op + 8 * P_OUT) + stride * first + 64 * panel
    sums = get_i64(op + 8 * P_SUMS) + 4 * SUM_SLICES * first
    steps = get_i64(op + 8 * P_STEPS) + 4 * first
    for i in range(count):
        total = get_i32(sums + 4 * SUM_SLICES * i)
        for part in range(1, SUM_SLICES):
            total += get_i32(sums + 4 * (SUM_SLICES * i + part))
        y = to_floats(load_ints(acc + 64 * i) - splat_int(total * offset)) * scale
        y = y * splat_float(get_f32(steps + 4 * i)) + bias
        if add:
            y = load_floats(out + stride * i) + y
        store_floats(out + stride * i, y)


@kernel
def run_product(op, step, first, last, scratch):
    """Panels first … last for all tokens of the step. `scratch` holds 1 KiB and a ready panel."""
    wants_all = get_i64(op + 8 * P_LAST) == 0
    tokens = get_i64(step + 8 * STEP_TOKENS) if wants_all else get_i64(step + 8 * STEP_LOGITS)
    if tokens > sparse_tokens():
        run_many(op, step, first, last, scratch)
    else:
        run_few(op, tokens, first, last, scratch)


@kernel
def run_few(op, tokens, first, last, scratch):
    """The weights as they stand, read from end to end."""
    bits, padded, panels_at = (
        get_i64(op + 8 * P_BITS),
        get_i64(op + 8 * P_PADDED),
        get_i64(op + 8 * P_WEIGHTS),
    )
    extras, groups, x = get_i64(op + 8 * P_EXTRAS), get_i64(op + 8 * P_GROUPS), get_i64(op + 8 * P_X)
    evens = get_i64(op + 8 * P_EVENS)
    sparse, row_size = get_i64(op + 8 * P_STARTS) != 0, padded + 4 * extras
    rows, stride = x if tokens == 1 else get_i64(op + 8 * P_ROWS), row_bytes(row_size)
    for panel in range(first, last):
        weights = panels_at + panel * padded * 2 * bits
        if sparse:
            fetch_excess(op, panel)
        for token in range(0, tokens, few_tile()):
            count = min(few_tile(), tokens - token)
            tile, digits = tile_of(count), x + token * row_size
            if bits == 8:
                product_int8(tile, weights, padded, digits, extras, evens, groups, scratch)
            else:
                product_int4(tile, weights, padded, digits, extras, evens, groups, scratch)
            if sparse:
                add_excess(op, panel, rows + token * stride, stride, count, scratch)
            finish_tile(op, panel, int8_offset() if bits == 8 else 8, token, count, scratch)


@kernel
def product_items(op):
    """Panels of the product."""
    return get_i64(op + 8 * P_PANELS)


@kernel
def product_bytes(op):
    """Bytes of a panel: what a chunk of work costs when memory is the limit."""
    return get_i64(op + 8 * P_PADDED) * 2 * get_i64(op + 8 * P_BITS)
