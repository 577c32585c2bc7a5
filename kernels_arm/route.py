"""Routing: which experts a token goes to and with what share, and the tokens of each expert side by side.

A choice is a token and one of its experts. The table of a step's choices (int32 words, `ops.choice_words`):

    header    [16]            experts used, tiles, experts, choices at most
    used      [experts, 4]    of each expert that is used, in order: its number, its first place, how many
                              places, its first tile, or −1 where it has too few for one
    chosen    [choices]       the expert of each choice, token by token
    order     [choices]       place → choice: places are sorted by expert, then by token
    place     [choices]       choice → place
    tiles     [choices, 2]    first place, places
"""

from __future__ import annotations

import numpy as np

from .acts import ONE, ZERO, exp16
from .doubles import add_doubles, high_doubles, low_doubles, no_doubles, sum_doubles
from .jit import inlined, kernel
from .ops import (
    BY_SIGMOID,
    BY_SOFTMAX,
    BY_TOPK_SOFTMAX,
    C_EXPERTS,
    C_FLOATS,
    C_GROUPS,
    C_KEEP,
    C_KEPT,
    C_KIND,
    C_LOGITS,
    C_NORMALIZE,
    C_PAIRS,
    C_SELECT,
    C_SHARES,
    C_SHARES_STRIDE,
    C_STRIDE,
    C_TABLE,
    STEP_TOKENS,
)  # fmt: skip
from .panels import full_ready
from .simd import (
    get_f32,
    get_i32,
    get_i64,
    keep_first,
    load_floats,
    set_f32,
    set_i32,
    splat_float,
    store_floats,
)

FEW_PLACES = 3  # of an expert: multiplied one by one; for more, panels are made ready
LEAST = np.float32(-np.inf)


# ------------------------------------------------------------------------------------------------ the table
@inlined
def used_count(table):
    return np.int64(get_i32(table))


@inlined
def tile_count(table):
    return np.int64(get_i32(table + 4))


@inlined
def used_at(table, number):
    """The address of a used expert's four words."""
    return table + 64 + 16 * number


@inlined
def chosen_at(table, experts):
    return table + 64 + 16 * experts


@inlined
def order_at(table):
    return chosen_at(table, get_i32(table + 8)) + 4 * np.int64(get_i32(table + 12))


@inlined
def place_at(table):
    return order_at(table) + 4 * np.int64(get_i32(table + 12))


@inlined
def tile_at(table, number):
    return place_at(table) + 4 * np.int64(get_i32(table + 12)) + 8 * number


# ----------------------------------------------------------------------------------------- a token's experts
@inlined
def exponentials(x, count, top):
    """x [count] becomes e^(x − top), zeros up to a multiple of 16; returns their sum."""
    total = no_doubles()
    for k in range(0, count, 16):
        lanes = exp16(load_floats(x + 4 * k) - splat_float(top))
        lanes = keep_first(lanes, count - k, splat_float(ZERO))
        store_floats(x + 4 * k, lanes)
        total = add_doubles(add_doubles(total, low_doubles(lanes)), high_doubles(lanes))
    return sum_doubles(total)


@inlined
def times(x, count, factor):
    for k in range(0, count, 16):
        store_floats(x + 4 * k, load_floats(x + 4 * k) * splat_float(factor))


@kernel
def chances(kind, logits, experts, p):
    """What the choice goes by, float32 [experts] at `p`: the logits where the softmax comes last."""
    for k in range(0, experts, 16):
        store_floats(p + 4 * k, load_floats(logits + 4 * k))
    if kind == BY_SOFTMAX:
        total = exponentials(p, experts, get_f32(p + 4 * largest(p, experts)))
        times(p, experts, np.float32(1 / total))
    elif kind == BY_SIGMOID:
        for k in range(0, experts, 16):
            decay = exp16(splat_float(ZERO) - load_floats(p + 4 * k))
            store_floats(p + 4 * k, splat_float(ONE) / (splat_float(ONE) + decay))


@inlined
def largest(x, count):
    """The first place of the largest of x [count]."""
    best, at = LEAST, 0
    for i in range(count):
        value = get_f32(x + 4 * i)
        if value > best:
            best, at = value, i
    return at


@kernel
def keep_groups(score, experts, groups, keep, sums):
    """−∞ for the experts of all groups but `keep`, those whose two best add up to most; sums: [groups]."""
    size = experts // groups
    for g in range(groups):
        first, second = LEAST, LEAST
        for e in range(g * size, (g + 1) * size):
            value = get_f32(score + 4 * e)
            if value > first:
                first, second = value, first
            elif value > second:
                second = value
        set_f32(sums + 4 * g, np.float32(first + second))
    for _ in range(keep):
        best = largest(sums, groups)
        set_f32(sums + 4 * best, np.float32(np.nan))  # kept: never the largest again
    for g in range(groups):
        if get_f32(sums + 4 * g) == get_f32(sums + 4 * g):
            for e in range(g * size, (g + 1) * size):
                set_f32(score + 4 * e, LEAST)


@kernel
def run_route(op, step, first, last, scratch):
    """Tokens first … last: their experts, into the table, and their shares, as `reference.route`.

    scratch: three rows of floats, each as long as the experts padded to 16.
    """
    experts, kept, kind = get_i64(op + 8 * C_EXPERTS), get_i64(op + 8 * C_KEPT), get_i64(op + 8 * C_KIND)
    select, table = get_i64(op + 8 * C_SELECT), get_i64(op + 8 * C_TABLE)
    row = (experts + 15) // 16 * 64
    p, score, sums = scratch, scratch + row, scratch + 2 * row
    for token in range(first, last):
        chances(kind, get_i64(op + 8 * C_LOGITS) + get_i64(op + 8 * C_STRIDE) * token, experts, p)
        for k in range(0, experts, 16):
            lanes = load_floats(p + 4 * k)
            if select:
                lanes = lanes + load_floats(select + 4 * k)
            store_floats(score + 4 * k, lanes)
        if get_i64(op + 8 * C_GROUPS) > 1:
            keep_groups(score, experts, get_i64(op + 8 * C_GROUPS), get_i64(op + 8 * C_KEEP), sums)
        chosen = chosen_at(table, experts) + 4 * kept * token
        shares = get_i64(op + 8 * C_SHARES) + get_i64(op + 8 * C_SHARES_STRIDE) * token
        for rank in range(kept):
            best = largest(score, experts)
            set_f32(score + 4 * best, LEAST)
            set_i32(chosen + 4 * rank, np.int32(best))
            set_f32(shares + 4 * rank, get_f32(p + 4 * best))
        weigh(op, kept, kind, shares)


@kernel
def weigh(op, kept, kind, shares):
    """What the chosen ones have become shares: by a softmax, or over their sum, or as they are."""
    floats = get_i64(op + 8 * C_FLOATS)
    if kind == BY_TOPK_SOFTMAX:
        total = exponentials(shares, kept, get_f32(shares))
        times(shares, kept, np.float32(1 / total))
    elif get_i64(op + 8 * C_NORMALIZE):
        total = 0.0
        for rank in range(kept):
            total += np.float64(get_f32(shares + 4 * rank))
        divisor = max(np.float32(total), get_f32(floats + 4))
        for rank in range(kept):
            set_f32(shares + 4 * rank, np.float32(get_f32(shares + 4 * rank) / divisor))
    times(shares, kept, get_f32(floats))


# ------------------------------------------------------------------------------------------- sorted by expert
@kernel
def run_sort(op, step, scratch):
    """The rest of the table. scratch: int32 [experts]."""
    experts, table = get_i64(op + 8 * C_EXPERTS), get_i64(op + 8 * C_TABLE)
    choices = get_i64(step + 8 * STEP_TOKENS) * get_i64(op + 8 * C_KEPT)
    set_i32(table + 8, np.int32(experts))
    set_i32(table + 12, np.int32(get_i64(op + 8 * C_PAIRS)))
    chosen, order, place = chosen_at(table, experts), order_at(table), place_at(table)
    for e in range(experts):
        set_i32(scratch + 4 * e, np.int32(0))
    for choice in range(choices):
        count = scratch + 4 * np.int64(get_i32(chosen + 4 * choice))
        set_i32(count, get_i32(count) + np.int32(1))
    share_out(table, experts, scratch)
    for choice in range(choices):
        next_place = scratch + 4 * np.int64(get_i32(chosen + 4 * choice))
        at = np.int64(get_i32(next_place))
        set_i32(next_place, np.int32(at + 1))
        set_i32(order + 4 * at, np.int32(choice))
        set_i32(place + 4 * choice, np.int32(at))


@kernel
def share_out(table, experts, counts):
    """Places and tiles for the experts that are used; counts [experts] become their first places."""
    used, tiles, first = 0, 0, 0
    for e in range(experts):
        count = np.int64(get_i32(counts + 4 * e))
        set_i32(counts + 4 * e, np.int32(first))
        if count == 0:
            continue
        words, many = used_at(table, used), count > FEW_PLACES
        set_i32(words, np.int32(e))
        set_i32(words + 4, np.int32(first))
        set_i32(words + 8, np.int32(count))
        set_i32(words + 12, np.int32(tiles if many else -1))
        if many:
            for at in range(0, count, full_ready()):
                set_i32(tile_at(table, tiles), np.int32(first + at))
                set_i32(tile_at(table, tiles) + 4, np.int32(min(full_ready(), count - at)))
                tiles += 1
        used, first = used + 1, first + count
    set_i32(table, np.int32(used))
    set_i32(table + 4, np.int32(tiles))
