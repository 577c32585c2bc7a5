"""Attention through a matrix S for each head, step for step `recurrent.linear_attention`.

Not all tokens of a step may be kept: guesses were wrong. So the state is the matrix at a slot's *floor*, and
the updates (f, k, u) of the positions after it, which are applied when the next step begins, as many as the
sequence still holds. The last one is applied on the way to the first new token's sums, so a step of one token
walks the matrix once. Of a step of more than KEPT tokens the first are summed up at once.

    state      float32 [slot, h, v/32, k padded to 16, 32]  S at the floor; an item is a block
    keys       float32 [slot, 2, KEPT, j, k padded to 16]   after the floor, in half `floors[slot, 1]`; the
                                                            other is written meanwhile, SETTLE swaps them
    updates    float32 [slot, h, v/32, KEPT, 48]            u of the block and f, of positions after the floor
    floors     int64 [slot, 3]

    scratch: the block after the step's first tokens, two keys, a query, u, v, 16 lanes
"""

from __future__ import annotations

import numpy as np

from .acts import ONE, ZERO, exp16
from .jit import inlined, kernel
from .ops import (
    FLOOR_BYTES,
    KEPT,
    L_BETA,
    L_BETA_STRIDE,
    L_DT,
    L_DT_STRIDE,
    L_FLOATS,
    L_FLOORS,
    L_HEADS,
    L_K,
    L_K_STRIDE,
    L_KEY_HEADS,
    L_KEY_SIZE,
    L_KEYS,
    L_OUT,
    L_OUT_STRIDE,
    L_Q,
    L_Q_STRIDE,
    L_STATE,
    L_UPDATES,
    L_V,
    L_V_STRIDE,
    L_VALUE_SIZE,
    S_FLOORS,
    STEP_SPANS,
    VALUE_BLOCK,
)  # fmt: skip
from .recurrent import GROUP, LOG_TERMS
from .simd import (
    get_f32,
    get_i64,
    greater,
    keep_first,
    load_floats,
    set_f32,
    set_i64,
    splat_float,
    store_floats,
    store_floats_part,
)
from .spans import first_row, past_of, rows_until, sequence_end, slot_of, span_of

BLOCK_ROW = 4 * VALUE_BLOCK  # bytes of a row of a block
UPDATE = BLOCK_ROW + 64  # bytes: u, f
TWO = np.float32(2)
(LOG_0, LOG_1, LOG_2, LOG_3, LOG_4, LOG_5, LOG_6, LOG_7, LOG_8) = LOG_TERMS


# ---------------------------------------------------------------------------------------- the gates of a head
@inlined
def softplus16(x):
    """log(1 + e^x) of 16 lanes, step for step `recurrent.softplus`."""
    zero = splat_float(ZERO)
    e = exp16(zero - greater(x, zero - x))
    s = e / (splat_float(TWO) + e)
    z = s * s
    p = splat_float(LOG_0) * z + splat_float(LOG_1)
    p = p * z + splat_float(LOG_2)
    p = p * z + splat_float(LOG_3)
    p = p * z + splat_float(LOG_4)
    p = p * z + splat_float(LOG_5)
    p = p * z + splat_float(LOG_6)
    p = p * z + splat_float(LOG_7)
    p = p * z + splat_float(LOG_8)
    return greater(x, zero) + (s + s) * p


@kernel
def gates_of(op, token, head, lanes):
    """The head's f and b at a token (`recurrent.linear_attention`). `lanes`: 64 bytes."""
    heads, floats = get_i64(op + 8 * L_HEADS), get_i64(op + 8 * L_FLOATS) + 4 * head
    dt = get_f32(get_i64(op + 8 * L_DT) + get_i64(op + 8 * L_DT_STRIDE) * token + 4 * head)
    least = get_f32(get_i64(op + 8 * L_FLOATS) + 12 * heads)
    x = splat_float(np.float32(dt + get_f32(floats)))
    size = greater(softplus16(x), splat_float(least))
    share = size
    if get_i64(op + 8 * L_BETA):
        beta = get_f32(get_i64(op + 8 * L_BETA) + get_i64(op + 8 * L_BETA_STRIDE) * token + 4 * head)
        one = splat_float(ONE)
        share = one / (one + exp16(splat_float(ZERO) - splat_float(beta)))
    store_floats(lanes, exp16(splat_float(get_f32(floats + 4 * heads)) * size))
    fade = get_f32(lanes)
    store_floats(lanes, share)
    return fade, get_f32(lanes)


# ------------------------------------------------------------------------------------------- walks of a block
@inlined
def update_row(source, target, fade, key, low, high):
    """S = f · S + k · u in one row of a block, which is returned, too."""
    first = fade * load_floats(source) + key * low
    second = fade * load_floats(source + 64) + key * high
    store_floats(target, first)
    store_floats(target + 64, second)
    return first, second


@kernel
def update_block(block, size, fade, keys, update):
    """An update in place: keys float32 [size], u at `update`."""
    f, low, high = splat_float(fade), load_floats(update), load_floats(update + 64)
    for i in range(size):
        at = block + BLOCK_ROW * i
        update_row(at, at, f, splat_float(get_f32(keys + 4 * i)), low, high)


@kernel
def sums_of(block, size, key, query, delta, sums):
    """k·S and q·S of a block, as `recurrent.in_groups`: `sums` float32 [2, 32]. k·S only with `delta`."""
    for start in range(0, size, GROUP):
        at = block + BLOCK_ROW * start
        first, second = load_floats(at), load_floats(at + 64)
        q, k = splat_float(get_f32(query + 4 * start)), splat_float(get_f32(key + 4 * start))
        q_low, q_high, k_low, k_high = q * first, q * second, k * first, k * second
        for i in range(start + 1, start + GROUP):
            at = block + BLOCK_ROW * i
            first, second, q = load_floats(at), load_floats(at + 64), splat_float(get_f32(query + 4 * i))
            q_low, q_high = q_low + q * first, q_high + q * second
            if delta:
                k = splat_float(get_f32(key + 4 * i))
                k_low, k_high = k_low + k * first, k_high + k * second
        add_group(start, sums, k_low, k_high, q_low, q_high)


@kernel
def update_and_sums(source, target, size, fade, keys, update, key, query, delta, sums):
    """An update from block `source` to block `target`, and the sums of what it becomes, in one walk."""
    f, low, high = splat_float(fade), load_floats(update), load_floats(update + 64)
    for start in range(0, size, GROUP):
        at = BLOCK_ROW * start
        first, second = update_row(
            source + at, target + at, f, splat_float(get_f32(keys + 4 * start)), low, high
        )
        q, k = splat_float(get_f32(query + 4 * start)), splat_float(get_f32(key + 4 * start))
        q_low, q_high, k_low, k_high = q * first, q * second, k * first, k * second
        for i in range(start + 1, start + GROUP):
            at = BLOCK_ROW * i
            first, second = update_row(
                source + at, target + at, f, splat_float(get_f32(keys + 4 * i)), low, high
            )
            q = splat_float(get_f32(query + 4 * i))
            q_low, q_high = q_low + q * first, q_high + q * second
            if delta:
                k = splat_float(get_f32(key + 4 * i))
                k_low, k_high = k_low + k * first, k_high + k * second
        add_group(start, sums, k_low, k_high, q_low, q_high)


@inlined
def add_group(start, sums, k_low, k_high, q_low, q_high):
    """A group's sums are the first ones, or are added to those of the groups before it."""
    if start:
        k_low, k_high = load_floats(sums) + k_low, load_floats(sums + 64) + k_high
        q_low, q_high = load_floats(sums + 128) + q_low, load_floats(sums + 192) + q_high
    store_floats(sums, k_low)
    store_floats(sums + 64, k_high)
    store_floats(sums + 128, q_low)
    store_floats(sums + 192, q_high)


@inlined
def half_sums(lanes, width):
    for i in range(width):
        set_f32(lanes + 4 * i, get_f32(lanes + 4 * i) + get_f32(lanes + 4 * (width + i)))


@kernel
def dot_of(key, query, size, lanes):
    """q·k, as `recurrent.dot` sums. `lanes`: 64 bytes."""
    total = load_floats(query) * load_floats(key)
    for at in range(64, 4 * size, 64):
        total = total + load_floats(query + at) * load_floats(key + at)
    store_floats(lanes, total)
    half_sums(lanes, 8)
    half_sums(lanes, 4)
    half_sums(lanes, 2)
    half_sums(lanes, 1)
    return get_f32(lanes)


# ------------------------------------------------------------------------------------------------- one token
@inlined
def whole_row(x, size, padded, place):
    """A row of `size` floats that may be read to a multiple of 16: where it stands, or a copy at `place`."""
    if size == padded:
        return x
    for k in range(0, padded, 16):
        store_floats(place + 4 * k, keep_first(load_floats(x + 4 * k), size - k, splat_float(ZERO)))
    return place


@kernel
def finish_token(op, token, head, block, fade, share, same, sums, update):
    """Of a token whose sums are there: u to `update`, and y to the outputs."""
    width, delta = get_i64(op + 8 * L_VALUE_SIZE), get_i64(op + 8 * L_BETA)
    heads, first = get_i64(op + 8 * L_HEADS), VALUE_BLOCK * block
    skip = splat_float(get_f32(get_i64(op + 8 * L_FLOATS) + 4 * (2 * heads + head)))
    column = 4 * (width * head + first)
    v = get_i64(op + 8 * L_V) + get_i64(op + 8 * L_V_STRIDE) * token + column
    y = get_i64(op + 8 * L_OUT) + get_i64(op + 8 * L_OUT_STRIDE) * token + column
    f, b, qk, zero = splat_float(fade), splat_float(share), splat_float(same), splat_float(ZERO)
    for at in range(0, BLOCK_ROW, 64):
        left = width - first - at // 4
        if left > 0:
            value = keep_first(load_floats(v + at), left, zero)
            u = b * (value - f * load_floats(sums + at)) if delta else b * value
            store_floats(update + at, u)
            out = f * load_floats(sums + 128 + at) + qk * u
            store_floats_part(y + at, out if delta else out + skip * value, left)
        else:
            store_floats(update + at, zero)


@kernel
def note_update(op, slot, head, block, number, half, fade, key, update):
    """Keep a token's update, of that number after the new floor. One item of a key head keeps the key."""
    heads, key_heads = get_i64(op + 8 * L_HEADS), get_i64(op + 8 * L_KEY_HEADS)
    blocks = (get_i64(op + 8 * L_VALUE_SIZE) + VALUE_BLOCK - 1) // VALUE_BLOCK
    padded, share = (get_i64(op + 8 * L_KEY_SIZE) + 15) // 16 * 16, heads // key_heads
    at = get_i64(op + 8 * L_UPDATES) + UPDATE * (((slot * heads + head) * blocks + block) * KEPT + number)
    store_floats(at, load_floats(update))
    store_floats(at + 64, load_floats(update + 64))
    set_f32(at + BLOCK_ROW, fade)
    if block == 0 and head % share == 0:
        place = ((2 * slot + half) * KEPT + number) * key_heads + head // share
        for k in range(0, 4 * padded, 64):
            store_floats(get_i64(op + 8 * L_KEYS) + 4 * padded * place + k, load_floats(key + k))


@kernel
def attend_block(op, step, number, end, head, block, scratch):
    """A block of a head over the tokens of spans `number` … `end`, which are of one sequence."""
    heads, share = get_i64(op + 8 * L_HEADS), get_i64(op + 8 * L_HEADS) // get_i64(op + 8 * L_KEY_HEADS)
    size, delta = get_i64(op + 8 * L_KEY_SIZE), get_i64(op + 8 * L_BETA)
    padded, blocks = (size + 15) // 16 * 16, (get_i64(op + 8 * L_VALUE_SIZE) + VALUE_BLOCK - 1) // VALUE_BLOCK
    span = span_of(step, number)
    slot, start, tokens = slot_of(span), first_row(span), rows_until(step, number, end)
    past = past_of(span) + start
    item = (slot * heads + head) * blocks + block
    state, log = get_i64(op + 8 * L_STATE) + BLOCK_ROW * padded * item, get_i64(op + 8 * L_UPDATES)
    log += UPDATE * KEPT * item
    floors = get_i64(op + 8 * L_FLOORS) + FLOOR_BYTES * slot
    pending, half = past - get_i64(floors), get_i64(floors + 8)
    summed = max(tokens - KEPT, 0)  # tokens that the new floor is after
    row_bytes = 4 * padded * get_i64(op + 8 * L_KEY_HEADS)
    noted = get_i64(op + 8 * L_KEYS) + row_bytes * (2 * slot + half) * KEPT + 4 * padded * (head // share)
    copy = scratch
    place = copy + BLOCK_ROW * padded
    query_place, update = place + 8 * padded, place + 12 * padded
    sums, lanes = update + BLOCK_ROW, update + 3 * BLOCK_ROW
    for i in range(pending - 1):
        update_block(
            state, padded, get_f32(log + UPDATE * i + BLOCK_ROW), noted + row_bytes * i, log + UPDATE * i
        )
    last_key, fade, source = noted, ZERO, state
    if pending > 0:
        entry = log + UPDATE * (pending - 1)
        last_key, fade = noted + row_bytes * (pending - 1), get_f32(entry + BLOCK_ROW)
        store_floats(update, load_floats(entry))
        store_floats(update + 64, load_floats(entry + 64))
    for t in range(tokens):
        token, at = start + t, 4 * size * (head // share)
        q = get_i64(op + 8 * L_Q) + get_i64(op + 8 * L_Q_STRIDE) * token + at
        k = get_i64(op + 8 * L_K) + get_i64(op + 8 * L_K_STRIDE) * token + at
        query = whole_row(q, size, padded, query_place)
        key = whole_row(k, size, padded, place + 4 * padded * (t & 1))
        if t > 0 or pending > 0:
            target = state if t <= summed else copy
            update_and_sums(source, target, padded, fade, last_key, update, key, query, delta, sums)
            source = target
        else:
            sums_of(state, padded, key, query, delta, sums)
        fade, part = gates_of(op, token, head, lanes)
        same = dot_of(key, query, padded, lanes)
        finish_token(op, token, head, block, fade, part, same, sums, update)
        if t >= summed:
            note_update(op, slot, head, block, t - summed, 1 - half, fade, key, update)
        last_key = key


@kernel
def linear_attention_items(op):
    """Heads × blocks of value columns."""
    return get_i64(op + 8 * L_HEADS) * ((get_i64(op + 8 * L_VALUE_SIZE) + VALUE_BLOCK - 1) // VALUE_BLOCK)


@kernel
def run_linear_attention(op, step, first, last, scratch):
    """Items first … last, each over all tokens of the step."""
    blocks, spans = (
        (get_i64(op + 8 * L_VALUE_SIZE) + VALUE_BLOCK - 1) // VALUE_BLOCK,
        get_i64(step + 8 * STEP_SPANS),
    )
    for item in range(first, last):
        number = 0
        while number < spans:
            end = sequence_end(step, number)
            attend_block(op, step, number, end, item // blocks, item % blocks, scratch)
            number = end


@kernel
def run_settle(op, step):
    """The floors of the step's sequences, once all their states are there."""
    number = 0
    while number < get_i64(step + 8 * STEP_SPANS):
        end, span = sequence_end(step, number), span_of(step, number)
        floors, past = (
            get_i64(op + 8 * S_FLOORS) + FLOOR_BYTES * slot_of(span),
            past_of(span) + first_row(span),
        )
        rows = rows_until(step, number, end)
        set_i64(floors, past + max(rows - KEPT, 0))
        set_i64(floors + 8, 1 - get_i64(floors + 8))
        set_i64(floors + 16, max(get_i64(floors + 16), past + rows))
        number = end
