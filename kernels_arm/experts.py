"""Products of chosen experts: each row of a step goes through the weights of its own experts.

The weights of all experts of a layer are one packed matrix, expert after expert in whole panels, of which
only the panels of the chosen ones are read. Rows stand by place, sorted by expert (route.py), from the first
product's output to the sum of a token's experts: so the rows of one expert follow each other. A few of them
are multiplied one by one with the weights as they stand; of more, each panel is made ready once (many.py).

    rows of digits    [rows, row_bytes]       low ones, then high ones, as those of one token
    tiles             [tiles, full_ready]     digits as many.py has them, then a sum and a step for each row

The sparse excess stands in the file panel by panel and is read as it is: what no token goes to stays on the
disk. A panel's first entry is at its first weight; each other one is so many weights after the one before.
"""

from __future__ import annotations

import numpy as np

from .dots import int8_offset
from .doubles import add_products, load_doubles, set_f64, store_tile_as_floats, zero_doubles
from .jit import inlined, kernel
from .many import expand_nibbles, in_order, multiply_ready
from .ops import (
    P_BIAS,
    P_BITS,
    P_EVENS,
    P_EXTRAS,
    P_GROUPS,
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
    P_WIDE,
    P_WIDES,
    P_X,
    Q_EXTRAS,
    Q_IN,
    Q_IN_STRIDE,
    Q_OUT,
    Q_PADDED,
    Q_SUMS,
    S_COLUMNS,
    S_KEPT,
    S_OUT,
    S_OUT_STRIDE,
    S_ROWS,
    S_ROWS_STRIDE,
    S_SHARES,
    S_SHARES_STRIDE,
    S_TABLE,
    X_DELTA,
    X_EACH,
    X_HIGH,
    X_TABLE,
    X_VALUE,
)  # fmt: skip
from .panels import full_ready, ready_of, ready_place, store_ready
from .pointwise import prepare_row, quantize_row, row_bytes, split_few
from .product import product_int4, product_int8
from .route import order_at, place_at, tile_at, used_at, used_count
from .simd import (
    get_f32,
    get_i8,
    get_i32,
    get_i64,
    get_u8,
    load_floats,
    load_ints,
    load_low_bytes,
    set_f32,
    set_i8,
    set_i32,
    splat_float,
    splat_int,
    store_floats,
    to_floats,
)


# ------------------------------------------------------------------------------------------ rows of digits
@kernel
def run_quantize_rows(op, first, last, scratch):
    """Rows first … last: apply norm or activation, then quantize, each by itself."""
    padded = get_i64(op + 8 * Q_PADDED)
    stride = row_bytes(padded + 4 * get_i64(op + 8 * Q_EXTRAS))
    for row in range(first, last):
        digits = get_i64(op + 8 * Q_OUT) + stride * row
        source = get_i64(op + 8 * Q_IN) + get_i64(op + 8 * Q_IN_STRIDE) * row
        x, inverse = prepare_row(op, source, row, 0, padded, scratch)
        total = quantize_row(op, x, inverse, scratch, 0, padded, 0, 1, digits, 0, False)
        set_i32(get_i64(op + 8 * Q_SUMS) + 4 * row, total)
        split_few(op, scratch, 0, padded, 0, 1, digits)


@inlined
def digits_row(op, place):
    """The number of the row of digits that is multiplied at `place`."""
    each = get_i64(op + 8 * X_EACH)
    return np.int64(get_i32(order_at(get_i64(op + 8 * X_TABLE)) + 4 * place)) // each if each else place


@inlined
def digits_at(op, row):
    stride = row_bytes(get_i64(op + 8 * P_PADDED) + 4 * get_i64(op + 8 * P_EXTRAS))
    return get_i64(op + 8 * P_ROWS) + stride * row


# ---------------------------------------------------------------------------------------------------- tiles
@inlined
def tile_row_size(op):
    """Bytes of a row's digits in a tile."""
    return get_i64(op + 8 * P_PADDED) + (get_i64(op + 8 * P_WIDES) + 15) // 16 * 16


@inlined
def tile_address(op, tile):
    return get_i64(op + 8 * P_X) + tile * full_ready() * (tile_row_size(op) + 8)


@kernel
def run_pack(op, first, last):
    """Tiles first … last of the step's choices, out of the rows of digits."""
    for tile in range(first, last):
        words = tile_at(get_i64(op + 8 * X_TABLE), tile)
        start, count = np.int64(get_i32(words)), np.int64(get_i32(words + 4))
        digits = tile_address(op, tile)
        sums = digits + full_ready() * tile_row_size(op)
        steps = sums + 4 * full_ready()
        for i in range(count):
            row = digits_row(op, start + i)
            pack_row(op, digits_at(op, row), i, ready_of(count), digits)
            set_i32(sums + 4 * i, get_i32(get_i64(op + 8 * P_SUMS) + 4 * row))
            set_f32(steps + 4 * i, get_f32(get_i64(op + 8 * P_STEPS) + 4 * row))


@inlined
def pack_row(op, source, i, tile, digits):
    """A row of digits into place i of a tile: low ones, then those of the flattened channels side by side."""
    padded, wides = get_i64(op + 8 * P_PADDED), get_i64(op + 8 * P_WIDES)
    both = 2 * padded if wides == padded else padded
    for k in range(0, both, 16):
        store_ready(digits + k * tile, load_low_bytes(source + k), i, tile)
    if both > padded:
        return
    places, high_at = get_i64(op + 8 * P_WIDE) + 4 * wides, digits + padded * tile
    for w in range(wides):
        digit = get_i8(source + padded + np.int64(get_i32(places + 4 * w)))
        set_i8(high_at + ready_place(w, i, tile), digit)
    for w in range(wides, (wides + 15) // 16 * 16):
        set_i8(high_at + ready_place(w, i, tile), 0)


# ------------------------------------------------------------------------------------------- sparse excess
@inlined
def excess_of(value):
    """What is added to the 4-bit plane where the total is `value`."""
    return value - min(max(value, np.int32(-8)), np.int32(7))


@kernel
def add_entries(op, panel, row, out):
    """The panel's excess times a row of digits, added to `out`, int32 [16]."""
    extras, padded = get_i64(op + 8 * P_EXTRAS), get_i64(op + 8 * P_PADDED)
    if extras == 0:
        _add_entries(op, panel, row, out, False, False)
    elif 4 * extras == padded:
        _add_entries(op, panel, row, out, True, False)
    else:
        _add_entries(op, panel, row, out, False, True)


@inlined
def _add_entries(op, panel, row, out, all_wide, some_wide):
    padded, starts, high = get_i64(op + 8 * P_PADDED), get_i64(op + 8 * P_STARTS), get_i64(op + 8 * X_HIGH)
    deltas, values = get_i64(op + 8 * X_DELTA), get_i64(op + 8 * X_VALUE)
    entry, last = np.int64(get_i32(starts + 4 * panel)), np.int64(get_i32(starts + 4 * panel + 4))
    at, end = row, row + padded  # a weight's digit, and where those of its row of weights end
    for r in range(16):  # what a damaged file has after them is left
        total = np.int32(0)
        while entry < last and at < end:
            excess, x = excess_of(np.int32(get_i8(values + entry))), np.int32(get_i8(at))
            if all_wide:
                x += np.int32(128) * np.int32(get_i8(at + padded))
            elif some_wide:
                place = np.int64(get_i32(high + 4 * (at - row)))
                if place > 0:
                    x += np.int32(128) * np.int32(get_i8(row + place))
            total += x * excess
            entry += 1
            at += next_gap(deltas, entry, last)
        at -= padded
        set_i32(out + 4 * r, get_i32(out + 4 * r) + total)


@inlined
def next_gap(deltas, entry, last):
    """From the entry before to this one, which may be none of the panel's."""
    return np.int64(get_u8(deltas + min(entry, last - 1)))


@kernel
def expand_entries(op, panel, out):
    """Add the panel's excess to its weights as int8 [padded/4, 16, 4] at `out`."""
    padded, starts = get_i64(op + 8 * P_PADDED), get_i64(op + 8 * P_STARTS)
    deltas, values = get_i64(op + 8 * X_DELTA), get_i64(op + 8 * X_VALUE)
    entry, last = np.int64(get_i32(starts + 4 * panel)), np.int64(get_i32(starts + 4 * panel + 4))
    position = 0
    for r in range(16):
        first = padded * r
        while entry < last and position < first + padded:
            column = position - first
            weight = out + (column >> 2) * 64 + r * 4 + (column & 3)
            set_i8(weight, get_i8(weight) + excess_of(np.int32(get_i8(values + entry))))
            entry += 1
            position += next_gap(deltas, entry, last)


# ------------------------------------------------------------------------------------------------- products
@kernel
def run_experts(op, first, last, scratch):
    """Panels first … last of those of all used experts, for all their rows. scratch: as `run_product`."""
    table, panels = get_i64(op + 8 * X_TABLE), get_i64(op + 8 * P_PANELS)
    for item in range(first, last):
        words, panel = used_at(table, item // panels), item % panels
        number = panels * np.int64(get_i32(words)) + panel
        start, count, tile = (
            np.int64(get_i32(words + 4)),
            np.int64(get_i32(words + 8)),
            np.int64(get_i32(words + 12)),
        )
        if tile < 0:
            run_places(op, number, panel, start, count, scratch)
        else:
            run_tiles(op, number, panel, start, count, tile, scratch)


@kernel
def run_places(op, number, panel, start, count, scratch):
    """Panel `number` of the matrix, `panel` of its expert, times the rows of a few places, one by one."""
    bits, padded, extras = get_i64(op + 8 * P_BITS), get_i64(op + 8 * P_PADDED), get_i64(op + 8 * P_EXTRAS)
    groups, evens = get_i64(op + 8 * P_GROUPS), get_i64(op + 8 * P_EVENS)
    weights = get_i64(op + 8 * P_WEIGHTS) + number * padded * 2 * bits
    scale = load_floats(get_i64(op + 8 * P_SCALE) + 64 * number)
    bias = load_floats(get_i64(op + 8 * P_BIAS) + 64 * number)
    offset = int8_offset() if bits == 8 else 8
    for place in range(start, start + count):
        row = digits_row(op, place)
        digits = digits_at(op, row)
        if bits == 8:
            product_int8(1, weights, padded, digits, extras, evens, groups, scratch)
        else:
            product_int4(1, weights, padded, digits, extras, evens, groups, scratch)
        if get_i64(op + 8 * P_STARTS):
            add_entries(op, number, digits, scratch)
        total = get_i32(get_i64(op + 8 * P_SUMS) + 4 * row)
        step = splat_float(get_f32(get_i64(op + 8 * P_STEPS) + 4 * row))
        y = (to_floats(load_ints(scratch) - splat_int(np.int32(total * offset))) * scale) * step + bias
        store_floats(get_i64(op + 8 * P_OUT) + get_i64(op + 8 * P_STRIDE) * place + 64 * panel, y)


@kernel
def run_tiles(op, number, panel, start, count, tile, scratch):
    """The same for the rows of many places, whose digits stand in tiles from number `tile` on."""
    bits, padded = get_i64(op + 8 * P_BITS), get_i64(op + 8 * P_PADDED)
    more, ready = (get_i64(op + 8 * P_WIDES) + 15) // 16, scratch + 1024
    weights = get_i64(op + 8 * P_WEIGHTS) + number * padded * 2 * bits
    if bits == 4:
        expand_nibbles(weights, padded, ready)
        weights = ready
        if get_i64(op + 8 * P_STARTS):
            expand_entries(op, number, ready)
    weights, picked = in_order(op, weights, ready, ready + 16 * padded)
    scale, bias = get_i64(op + 8 * P_SCALE) + 64 * number, get_i64(op + 8 * P_BIAS) + 64 * number
    stride, out = get_i64(op + 8 * P_STRIDE), get_i64(op + 8 * P_OUT) + 64 * panel
    for at in range(0, count, full_ready()):
        places, x = min(full_ready(), count - at), tile_address(op, tile + at // full_ready())
        sums = x + full_ready() * tile_row_size(op)
        multiply_ready(
            ready_of(places), weights, padded // 16, picked, more, x, places, scratch, sums,
            sums + 4 * full_ready(), scale, bias, out + stride * (start + at), stride, 0,
        )  # fmt: skip


@kernel
def experts_items(op):
    """Panels of all experts that are used."""
    return used_count(get_i64(op + 8 * X_TABLE)) * get_i64(op + 8 * P_PANELS)


# -------------------------------------------------------------------------------------------------- the sum
@kernel
def run_expert_sum(op, first, last, scratch):
    """Tokens first … last: Σ share · row over a token's experts, in the order in which they were chosen."""
    kept, columns = get_i64(op + 8 * S_KEPT), get_i64(op + 8 * S_COLUMNS)
    rows, stride = get_i64(op + 8 * S_ROWS), get_i64(op + 8 * S_ROWS_STRIDE)
    for token in range(first, last):
        shares = get_i64(op + 8 * S_SHARES) + get_i64(op + 8 * S_SHARES_STRIDE) * token
        places = place_at(get_i64(op + 8 * S_TABLE)) + 4 * kept * token
        y = get_i64(op + 8 * S_OUT) + get_i64(op + 8 * S_OUT_STRIDE) * token
        for rank in range(kept):
            set_f64(scratch + 8 * rank, np.float64(get_f32(shares + 4 * rank)))
        for k in range(0, (columns + 15) // 16 * 16, 8):
            total = zero_doubles(1)
            for rank in range(kept):
                row = rows + stride * np.int64(get_i32(places + 4 * rank))
                total = add_products(total, load_doubles(row + 4 * k), scratch + 8 * rank, 0)
            store_tile_as_floats(y + 4 * k, 0, total)
