"""Products of many tokens: a panel is made ready once (panels.py), then multiplied with tile after tile.

Ready means int8 with the sparse excess added, in the order that the tier wants, and the columns of flattened
channels side by side after the others. The sums of their high digits come first, and are shifted by a digit
before the rest is added to them:

    digits of a tile    all columns, low · the flattened ones, high (padded to 16 columns)
    scratch             1 KiB · panel [padded, 16] · flattened columns [wide padded to 16, 16]
"""

from __future__ import annotations

import numpy as np

from .dots import int8_offset
from .excess import expand_excess
from .forms import from_block, to_block
from .jit import inlined, kernel
from .ops import (
    P_ADD,
    P_BIAS,
    P_BITS,
    P_LAST,
    P_OUT,
    P_PADDED,
    P_SCALE,
    P_STARTS,
    P_STEPS,
    P_STRIDE,
    P_SUMS,
    P_WEIGHTS,
    P_WIDE,
    P_WIDES,
    P_X,
    STEP_LOGITS,
    STEP_TOKENS,
)  # fmt: skip
from .panels import add_ready, finish_rows, full_ready, has_ready, push_column, ready_of, zip_steps, zips
from .simd import (
    get_f32,
    get_i32,
    get_i64,
    high_nibbles,
    load_bytes,
    load_floats,
    load_ints,
    low_nibbles,
    minus_eight,
    splat_float,
    splat_int,
    store_bytes,
    store_floats,
    store_ints,
    to_floats,
)
from .tiles import store_tile, tile_times_128, zero_ints


# ----------------------------------------------------------------------------------------- a panel made ready
@inlined
def expand_nibbles(weights, padded, out):
    """A 4-bit panel as a plain int8 panel [padded/4 steps, 64] at `out`."""
    for step in range(padded // 8):
        packed = load_bytes(weights + 64 * step)
        store_bytes(out + 128 * step, minus_eight(low_nibbles(packed)))
        store_bytes(out + 128 * step + 64, minus_eight(high_nibbles(packed)))


@kernel
def expand_panel(op, panel, weights, out):
    """The same with its excess."""
    expand_nibbles(weights, get_i64(op + 8 * P_PADDED), out)
    if get_i64(op + 8 * P_STARTS):
        expand_excess(op, panel, out)


@kernel
def pick_columns(op, panel, out):
    """The flattened columns of an int8 panel side by side. What follows the last meets digits that are 0."""
    wide, count = get_i64(op + 8 * P_WIDE), get_i64(op + 8 * P_WIDES)
    for first in range(0, count, 4):
        words = splat_int(np.int32(0))
        for i in range(first, first + 4):
            words = push_column(words, panel, np.int64(get_i32(wide + 4 * min(i, count - 1))))
        store_ints(out + 16 * first, words)


@kernel
def zip_panel(columns, source, out):
    """The panel in SMMLA's order; `out` may be `source`."""
    for at in range(0, 16 * columns, 128):
        zip_steps(source + at, out + at)


@kernel
def make_ready(op, panel, ready, picked):
    """The panel as `in_order` gives it, of 4 or 8 bits."""
    bits, padded = get_i64(op + 8 * P_BITS), get_i64(op + 8 * P_PADDED)
    weights = get_i64(op + 8 * P_WEIGHTS) + panel * padded * 2 * bits
    if bits == 4:
        expand_panel(op, panel, weights, ready)
        weights = ready
    return in_order(op, weights, ready, picked)


@kernel
def in_order(op, weights, ready, picked):
    """Of an int8 panel: the address of the ready one, `ready` or that of weights that stand as they should,
    and the address of its flattened columns, `picked` or the panel's where all of them are."""
    padded, wides = get_i64(op + 8 * P_PADDED), get_i64(op + 8 * P_WIDES)
    all_wide = wides == padded
    if not all_wide:
        pick_columns(op, weights, picked)
    if zips():
        zip_panel(padded, weights, ready)
        if not all_wide:
            zip_panel((wides + 15) // 16 * 16, picked, picked)
        weights = ready
    return weights, weights if all_wide else picked


# ----------------------------------------------------------------------------------------- tile after tile
def _ready(tokens: int):
    """A ready panel times one tile of digits; the first `count` tokens are finished, to rows at `out`."""

    @inlined
    def multiply(
        weights, blocks, picked, more, x, count, scratch, sums, steps, scale, bias, out, stride, add
    ):
        acc = to_block(zero_ints(tokens), 8)
        high = x + 16 * tokens * blocks
        for block in range(more):
            acc = add_ready(acc, picked + 256 * block, high + 16 * tokens * block, tokens)
        acc = tile_times_128(acc)
        for block in range(blocks):
            acc = add_ready(acc, weights + 256 * block, x + 16 * tokens * block, tokens)
        rows = from_block(acc, tokens, 8)
        if count == tokens:
            finish_rows(rows, sums, steps, scale, bias, out, stride, add)
        else:
            store_tile(scratch, 64, rows)
            finish_some(scratch, count, sums, steps, scale, bias, out, stride, add)

    return multiply


@kernel
def finish_some(acc, count, sums, steps, scale, bias, out, stride, add):
    """As `finish_rows`, of int32 [count, 16] at `acc`."""
    for i in range(count):
        shift = splat_int(np.int32(get_i32(sums + 4 * i) * int8_offset()))
        y = to_floats(load_ints(acc + 64 * i) - shift) * load_floats(scale)
        y = y * splat_float(get_f32(steps + 4 * i)) + load_floats(bias)
        if add:
            y = load_floats(out + stride * i) + y
        store_floats(out + stride * i, y)


_ready_1, _ready_2, _ready_4, _ready_6, _ready_8, _ready_16 = (_ready(m) for m in (1, 2, 4, 6, 8, 16))


@kernel
def multiply_ready(
    tile, weights, blocks, picked, more, x, count, scratch, sums, steps, scale, bias, out, stride, add
):
    if has_ready(1) and tile == 1:
        _ready_1(weights, blocks, picked, more, x, count, scratch, sums, steps, scale, bias, out, stride, add)
    elif has_ready(2) and tile == 2:
        _ready_2(weights, blocks, picked, more, x, count, scratch, sums, steps, scale, bias, out, stride, add)
    elif has_ready(4) and tile == 4:
        _ready_4(weights, blocks, picked, more, x, count, scratch, sums, steps, scale, bias, out, stride, add)
    elif has_ready(6) and tile == 6:
        _ready_6(weights, blocks, picked, more, x, count, scratch, sums, steps, scale, bias, out, stride, add)
    elif has_ready(8) and tile == 8:
        _ready_8(weights, blocks, picked, more, x, count, scratch, sums, steps, scale, bias, out, stride, add)
    elif has_ready(16) and tile == 16:
        _ready_16(
            weights, blocks, picked, more, x, count, scratch, sums, steps, scale, bias, out, stride, add
        )


@kernel
def run_many(op, step, first, last, scratch):
    """Panels first … last of a product, for all tokens of a step that has more than `sparse_tokens`."""
    tokens = get_i64(step + 8 * (STEP_LOGITS if get_i64(op + 8 * P_LAST) else STEP_TOKENS))
    padded, more = get_i64(op + 8 * P_PADDED), (get_i64(op + 8 * P_WIDES) + 15) // 16
    ready = scratch + 1024
    place, row_size = ready + 16 * padded, padded + 16 * more
    stride, add = get_i64(op + 8 * P_STRIDE), get_i64(op + 8 * P_ADD)
    for panel in range(first, last):
        weights, picked = make_ready(op, panel, ready, place)
        scale = get_i64(op + 8 * P_SCALE) + 64 * panel
        bias = get_i64(op + 8 * P_BIAS) + 64 * panel
        for token in range(0, tokens, full_ready()):
            count = min(full_ready(), tokens - token)
            x, steps = get_i64(op + 8 * P_X) + token * row_size, get_i64(op + 8 * P_STEPS) + 4 * token
            sums = get_i64(op + 8 * P_SUMS) + 4 * token
            out = get_i64(op + 8 * P_OUT) + stride * token + 64 * panel
            multiply_ready(
                ready_of(count), weights, padded // 16, picked, more, x, count, scratch, sums, steps, scale,
                bias, out, stride, add,
            )  # fmt: skip
