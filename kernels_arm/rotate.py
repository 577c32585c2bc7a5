"""Rotary embedding, by itself or with the append of keys and values to a float32 cache."""

from __future__ import annotations

from .jit import inlined, kernel
from .ops import (
    R_CONTEXT,
    R_COS,
    R_GROUPS,
    R_HEADS,
    R_KEYS,
    R_QKV,
    R_RING,
    R_SIN,
    R_SIZE,
    R_STRIDE,
    R_VALUES,
)  # fmt: skip
from .simd import get_f32, get_i64, load_floats, set_f32, store_floats
from .spans import past_of, slot_of, span_from, span_of


@inlined
def rotate_head(x, cos, sin, half, y, y_stride):
    """Rotate one head from x to y; y's elements are y_stride bytes apart."""
    if y_stride == 4 and half % 16 == 0:
        for i in range(0, half, 16):
            low, high = load_floats(x + 4 * i), load_floats(x + 4 * (half + i))
            cosine, sine = load_floats(cos + 4 * i), load_floats(sin + 4 * i)
            store_floats(y + 4 * i, low * cosine - high * sine)
            store_floats(y + 4 * (half + i), high * cosine + low * sine)
        return
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
    half, width, turns = size // 2, (size + 15) // 16 * 16, get_i64(op + 8 * R_COS) != 0
    ring = get_i64(op + 8 * R_RING)
    span = span_of(step, 0)
    for token in range(first, last):
        span = span_from(span, token)
        position = past_of(span) + token
        row = get_i64(op + 8 * R_QKV) + get_i64(op + 8 * R_STRIDE) * token
        cos = get_i64(op + 8 * R_COS) + 4 * half * position
        sin = get_i64(op + 8 * R_SIN) + 4 * half * position
        for head in range(heads if turns else 0):
            rotate_head(row + 4 * size * head, cos, sin, half, row + 4 * size * head, 4)
        for group in range(groups):
            k = row + 4 * size * (heads + group)
            v = row + 4 * size * (heads + groups + group)
            cached = groups * slot_of(span) + group
            for at in range(position % ring, context, ring):  # in a ring, once more at its end
                block = cached * (context // 16) + (at >> 4)
                place = keys + block * size * 64 + 4 * (at & 15)
                if turns:
                    rotate_head(k, cos, sin, half, place, 64)
                else:
                    for i in range(size):
                        set_f32(place + 64 * i, get_f32(k + 4 * i))
                out = values + 4 * width * (cached * context + at)
                for i in range(size):
                    set_f32(out + 4 * i, get_f32(v + 4 * i))


@kernel
def run_turn(op, step, first, last):
    """Tokens first … last: rotate heads in place."""
    heads, size = get_i64(op + 8 * R_HEADS), get_i64(op + 8 * R_SIZE)
    half, span = size // 2, span_of(step, 0)
    for token in range(first, last):
        span = span_from(span, token)
        at = 4 * half * (past_of(span) + token)
        cos, sin = get_i64(op + 8 * R_COS) + at, get_i64(op + 8 * R_SIN) + at
        row = get_i64(op + 8 * R_QKV) + get_i64(op + 8 * R_STRIDE) * token
        for head in range(heads):
            rotate_head(row + 4 * size * head, cos, sin, half, row + 4 * size * head, 4)
