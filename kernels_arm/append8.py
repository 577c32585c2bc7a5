"""Rotary embedding before an int8 K/V cache: q, k and v as int8 with a scale for each token and head.

q goes to a buffer of the step, k and v into the cache in the order in which attention8.py reads them.
"""

from __future__ import annotations

import numpy as np

from .acts import ZERO
from .jit import inlined, kernel
from .ops import (
    I_CONTEXT,
    I_COS,
    I_FLOATS,
    I_GROUPS,
    I_HEADS,
    I_KEY_SCALES,
    I_KEYS,
    I_QKV,
    I_QUERIES,
    I_SIN,
    I_SIZE,
    I_STRIDE,
    I_VALUE_SCALES,
    I_VALUES,
    KV_BLOCK,
)  # fmt: skip
from .reference import FLOOR, HEAD_LEVELS
from .simd import (
    get_f32,
    get_i32,
    get_i64,
    greater,
    keep_first,
    load_floats,
    max_floats,
    round_even,
    set_f32,
    set_i8,
    set_i32,
    splat_float,
    splat_int,
    store_floats,
    store_ints,
    store_steps,
    sum_ints,
    to_ints,
)
from .spans import past_of, slot_of, span_from, span_of


@inlined
def padded_size(op):
    return (get_i64(op + 8 * I_SIZE) + 15) // 16 * 16


@inlined
def query_bytes(width):
    return width + 16


# -------------------------------------------------------------------- rotary embedding, quantization, append
@inlined
def rotate_head(x, cos, sin, half, y):
    """Rotate one head from x to y, 16 lanes at a time; lanes past a half are overwritten or unused."""
    for i in range(0, half, 16):
        a, b = load_floats(x + 4 * i), load_floats(x + 4 * (half + i))
        store_floats(y + 4 * i, a * load_floats(cos + 4 * i) - b * load_floats(sin + 4 * i))
    for i in range(0, half, 16):
        a, b = load_floats(x + 4 * i), load_floats(x + 4 * (half + i))
        store_floats(y + 4 * (half + i), b * load_floats(cos + 4 * i) + a * load_floats(sin + 4 * i))


@inlined
def lanes_of(x, i, size):
    return keep_first(load_floats(x + 4 * i), size - i, splat_float(ZERO))


@kernel
def largest_of(x, size):
    """The largest magnitude of `size` floats, at least FLOOR."""
    top = splat_float(FLOOR)
    for i in range(0, size, 16):
        v = lanes_of(x, i, size)
        top = greater(greater(v, splat_float(ZERO) - v), top)
    return max_floats(top)


@inlined
def steps_of(x, i, size, inverse):
    return to_ints(round_even(lanes_of(x, i, size) * splat_float(inverse)))


@kernel
def write_query(x, size, scale, out):
    largest, width = largest_of(x, size), (size + 15) // 16 * 16
    inverse, total = np.float32(HEAD_LEVELS / largest), splat_int(np.int32(0))
    for i in range(0, size, 16):
        steps = steps_of(x, i, size, inverse)
        total = total + steps
        store_steps(out + i, steps, 4)
    set_f32(out + width, np.float32(np.float32(largest / HEAD_LEVELS) * scale))
    set_i32(out + width + 4, sum_ints(total))


@kernel
def write_key(x, size, keys, scales, position):
    """`keys` and `scales` are the group's."""
    largest, width = largest_of(x, size), (size + 15) // 16 * 16
    inverse = np.float32(HEAD_LEVELS / largest)
    out = keys + (position >> 4) * 16 * width + 4 * (position & 15)
    for i in range(0, size, 16):
        store_steps(out + 16 * i, steps_of(x, i, size, inverse), 64)
    set_f32(scales + 4 * position, np.float32(largest / HEAD_LEVELS))


@kernel
def write_value(x, size, values, scales, position, scratch):
    largest, width = largest_of(x, size), (size + 15) // 16 * 16
    inverse, within = np.float32(HEAD_LEVELS / largest), position % KV_BLOCK
    block = values + (position - within) * width + 64 * (within >> 2) + (within & 3)
    for i in range(0, size, 16):
        store_ints(scratch, steps_of(x, i, size, inverse))
        for r in range(16):
            set_i8(block + KV_BLOCK * i + 4 * r, get_i32(scratch + 4 * r))
    set_f32(scales + 4 * position, np.float32(largest / HEAD_LEVELS))


@kernel
def run_rotate8(op, step, first, last, scratch):
    """Tokens first … last: rotate q and k, write q as int8, append k and v to the cache."""
    heads, groups, size = get_i64(op + 8 * I_HEADS), get_i64(op + 8 * I_GROUPS), get_i64(op + 8 * I_SIZE)
    width, half, context = padded_size(op), size // 2, get_i64(op + 8 * I_CONTEXT)
    turned, turns = scratch + 64, get_i64(op + 8 * I_COS) != 0
    scale = get_f32(get_i64(op + 8 * I_FLOATS))
    span = span_of(step, 0)
    for token in range(first, last):
        span = span_from(span, token)
        position = past_of(span) + token
        place = position % context
        row = get_i64(op + 8 * I_QKV) + get_i64(op + 8 * I_STRIDE) * token
        cos = get_i64(op + 8 * I_COS) + 4 * half * position
        sin = get_i64(op + 8 * I_SIN) + 4 * half * position
        queries = get_i64(op + 8 * I_QUERIES) + query_bytes(width) * heads * token
        for head in range(heads):
            q = row + 4 * size * head
            if turns:
                rotate_head(q, cos, sin, half, turned)
            write_query(turned if turns else q, size, scale, queries + query_bytes(width) * head)
        for group in range(groups):
            k = row + 4 * size * (heads + group)
            if turns:
                rotate_head(k, cos, sin, half, turned)
            cached = groups * slot_of(span) + group
            at, scales = context * width * cached, 4 * context * cached
            key_scales, value_scales = get_i64(op + 8 * I_KEY_SCALES), get_i64(op + 8 * I_VALUE_SCALES)
            key = turned if turns else k
            write_key(key, size, get_i64(op + 8 * I_KEYS) + at, key_scales + scales, place)
            v, values = k + 4 * size * groups, get_i64(op + 8 * I_VALUES) + at
            write_value(v, size, values, value_scales + scales, place, scratch)
