"""Sparse excess of 4-bit weights: gathered when a model is loaded, added by table lookups.

A lookup holds up to 64 entries of a panel, 4 for each of its 16 rows: 64 picks and 64 values, a byte each.
Its picks count from its base, a place in a token's row of digits, and stay within the tier's window; unused
ones have the value 0. A row of digits is the low digits of all columns, then the high digits of the flattened
ones: an entry in a flattened column stands once among the panel's low lookups and once among its high ones,
whose sum counts 128 times. Where all columns have high digits, the low lookups are used for both.

    out[i, r] += Σ low[i, column] · excess + 128 · Σ high[i, column] · excess
"""

from __future__ import annotations

import numpy as np

from .blocks import prefetch
from .jit import inlined, kernel
from .ops import (
    J_BASES,
    J_COLUMNS,
    J_DELTA,
    J_ENTRIES,
    J_HIGH,
    J_LOOKUPS,
    J_PANELS,
    J_SCRATCH,
    J_STARTS,
    J_VALUE,
    LOOKUP,
    P_BASES,
    P_EXTRAS,
    P_LOOKUPS,
    P_PADDED,
    P_STARTS,
)
from .simd import get_i8, get_i32, get_i64, get_u8, get_u16, set_i8, set_i32, set_u16
from .tables import base_of, from_lookups, look_up, to_lookups, tokens_at_once, window
from .tiles import add_tile, plus_128_times, zero_ints


# ----------------------------------------------------------------------------------------------- adding
def _adder(tokens: int):
    @inlined
    def add(op, panel, row, stride, out):
        """A panel's excess for `tokens` rows of digits, added to `out`, int32 [tokens, 16]."""
        starts, bases = get_i64(op + 8 * P_STARTS) + 8 * panel, get_i64(op + 8 * P_BASES)
        lookups, padded = get_i64(op + 8 * P_LOOKUPS), get_i64(op + 8 * P_PADDED)
        first, middle, last = get_i32(starts), get_i32(starts + 4), get_i32(starts + 8)
        low, high = to_lookups(zero_ints(tokens)), to_lookups(zero_ints(tokens))
        if 4 * get_i64(op + 8 * P_EXTRAS) == padded:
            for at in range(first, middle):
                digits, picks = row + np.int64(get_u16(bases + 2 * at)), lookups + LOOKUP * at
                low = look_up(low, digits, stride, picks)
                high = look_up(high, digits + padded, stride, picks)
        else:
            for at in range(first, middle):
                low = look_up(low, row + np.int64(get_u16(bases + 2 * at)), stride, lookups + LOOKUP * at)
            for at in range(middle, last):
                high = look_up(high, row + np.int64(get_u16(bases + 2 * at)), stride, lookups + LOOKUP * at)
        add_tile(out, 64, plus_128_times(from_lookups(low), from_lookups(high)))

    return add


_add_1, _add_2, _add_4, _add_8 = _adder(1), _adder(2), _adder(4), _adder(8)


@kernel
def add_excess(op, panel, row, stride, count, out):
    """Add the panel's excess to `out`, int32 [count ≤ 8, 16]; `row` is the first token's row of digits.

    Where tokens share a lookup, up to three beyond `count` may be read and written.
    """
    if tokens_at_once(8) and count > 4:
        _add_8(op, panel, row, stride, out)
    elif tokens_at_once(4) and count > 2:
        _add_4(op, panel, row, stride, out)
    elif tokens_at_once(2) and count > 1:
        _add_2(op, panel, row, stride, out)
    else:
        for i in range(count):
            _add_1(op, panel, row + stride * i, stride, out + 64 * i)


@kernel
def fetch_excess(op, panel):
    """Prefetch a panel's lookups: too many products stand before them for the core to see them come."""
    starts, lookups = get_i64(op + 8 * P_STARTS) + 8 * panel, get_i64(op + 8 * P_LOOKUPS)
    for at in range(LOOKUP * get_i32(starts), LOOKUP * get_i32(starts + 8), 64):
        prefetch(lookups + at)


@kernel
def expand_excess(op, panel, out):
    """Add the panel's excess to its weights as int8 [columns/4, 16, 4] at `out`."""
    starts, bases = get_i64(op + 8 * P_STARTS) + 8 * panel, get_i64(op + 8 * P_BASES)
    lookups = get_i64(op + 8 * P_LOOKUPS)
    for at in range(get_i32(starts), get_i32(starts + 4)):
        picks, base = lookups + LOOKUP * at, np.int64(get_u16(bases + 2 * at))
        for i in range(64):
            value = get_i8(picks + 64 + i)
            if value != 0:
                column = base + np.int64(get_u8(picks + i))
                weight = out + (column >> 2) * 64 + (i >> 2) * 4 + (column & 3)
                set_i8(weight, get_i8(weight) + value)


# -------------------------------------------------------------------------------------------- gathering
@kernel
def gather(job):
    """Sparse excess as the artifact has it → lookups. Returns how many; −1: an entry lies beyond the matrix.

    `job` is the address of the words J_…. Where J_LOOKUPS is 0 they are only counted.
    """
    delta, value = get_i64(job + 8 * J_DELTA), get_i64(job + 8 * J_VALUE)
    entries, columns = get_i64(job + 8 * J_ENTRIES), get_i64(job + 8 * J_COLUMNS)
    scratch, starts = get_i64(job + 8 * J_SCRATCH), get_i64(job + 8 * J_STARTS)
    ends, lists = scratch, scratch + 128
    entry, made = 0, 0
    position = np.int64(get_u8(delta)) if entries else 0
    set_i32(starts, np.int32(0))
    for panel in range(get_i64(job + 8 * J_PANELS)):
        for r in range(16):
            set_i32(ends + 4 * r, np.int32(0))
        end = 16 * columns * (panel + 1)
        while entry < entries and position < end:
            total = np.int32(get_i8(value + entry))
            excess = total - min(max(total, np.int32(-8)), np.int32(7))
            if excess != 0:
                r = position // columns - 16 * panel
                count = get_i32(ends + 4 * r)
                put(lists + 8 * (r * columns + count), position % columns, excess)
                set_i32(ends + 4 * r, count + np.int32(1))
            entry += 1
            if entry < entries:
                position += np.int64(get_u8(delta + entry))
        made = gather_panel(job, made)
        set_i32(starts + 8 * panel + 4, np.int32(made))
        keep_high(job)
        made = gather_panel(job, made)
        set_i32(starts + 8 * panel + 8, np.int32(made))
    return made if entry == entries else -1


@inlined
def put(at, place, excess):
    set_i32(at, np.int32(place))
    set_i32(at + 4, excess)


@kernel
def keep_high(job):
    """Of the lists, keep the entries of flattened columns, sorted by the places of their high digits."""
    columns, high = get_i64(job + 8 * J_COLUMNS), get_i64(job + 8 * J_HIGH)
    ends = get_i64(job + 8 * J_SCRATCH)
    for r in range(16):
        own, kept = ends + 128 + 8 * r * columns, 0
        for i in range(get_i32(ends + 4 * r)):
            place = get_i32(high + 4 * np.int64(get_i32(own + 8 * i)))
            if place > 0:
                excess, at = get_i32(own + 8 * i + 4), own + 8 * kept
                while at > own and get_i32(at - 8) > place:
                    put(at, get_i32(at - 8), get_i32(at - 4))
                    at -= 8
                put(at, place, excess)
                kept += 1
        set_i32(ends + 4 * r, np.int32(kept))


@kernel
def gather_panel(job, made):
    """Bundle the lists of a panel's 16 rows, the lowest column first; returns `made` plus the bundles."""
    columns, ends = get_i64(job + 8 * J_COLUMNS), get_i64(job + 8 * J_SCRATCH)
    lookups, bases = get_i64(job + 8 * J_LOOKUPS), get_i64(job + 8 * J_BASES)
    lists, taken = ends + 128, ends + 64
    for r in range(16):
        set_i32(taken + 4 * r, np.int32(0))
    while True:
        base = np.int64(1 << 30)
        for r in range(16):
            i = get_i32(taken + 4 * r)
            if i < get_i32(ends + 4 * r):
                base = min(base, np.int64(get_i32(lists + 8 * (r * columns + i))))
        if base == 1 << 30:
            return made
        base = base_of(base)
        if lookups:
            set_u16(bases + 2 * made, base)
        for r in range(16):
            for j in range(4):
                i = np.int64(get_i32(taken + 4 * r))
                at = lists + 8 * (r * columns + i)
                fits = i < get_i32(ends + 4 * r) and get_i32(at) < base + window()
                if fits:
                    set_i32(taken + 4 * r, np.int32(i + 1))
                if lookups:
                    pick = lookups + LOOKUP * made + 4 * r + j
                    set_i8(pick, get_i32(at) - base if fits else 0)
                    set_i8(pick + 64, get_i32(at + 4) if fits else 0)
        made += 1
