"""The plan's interpreter: every thread walks the same op table and they share each op's chunks.

An op's progress is one word, (step number, chunks, taken, done). A thread takes the next chunk with a
compare-and-swap; when none is left it waits until all are done and goes on. So nobody waits for a thread
that has no chunk in hand: one that the system has put aside finds the step finished when it comes back.

    word:  step number (33 bits) | chunks (10) | taken (10) | done (10)
    team:  the T_* words of ops.py
"""

from __future__ import annotations

from .append8 import run_rotate8
from .attention import attend_items, run_attend
from .attention8 import attend8_items, run_attend8
from .conv import conv_items, run_conv
from .experts import experts_items, run_expert_sum, run_experts, run_pack, run_quantize_rows
from .jit import inlined, kernel
from .linear_attention import linear_attention_items, run_linear_attention, run_settle
from .ops import (
    ACT_ROWS,
    ADD_ROWS,
    ATTEND,
    ATTEND8,
    CONV,
    EMBED,
    EXPERT_SUM,
    EXPERTS,
    GATE_ROWS,
    HEAD_NORM,
    LINEAR_ATTENTION,
    MULTIPLY_ROWS,
    NORM_ROWS,
    P_LAST,
    PACK,
    PRODUCT,
    Q_EACH,
    Q_LAST,
    Q_PADDED,
    QUANTIZE,
    QUANTIZE_ROWS,
    RECORD,
    ROTATE,
    ROTATE8,
    ROUTE,
    SETTLE,
    SOFT_CAP,
    SORT,
    STEP_LOGITS,
    STEP_TOKENS,
    T_COUNT,
    T_OPS,
    T_PARKED,
    T_SCRATCH,
    T_SCRATCH_SIZE,
    T_STATE,
    T_STEP,
    T_STOP,
    T_THREADS,
    T_TIMES,
    T_WORDS,
    T_YIELD,
    TURN,
    X_TABLE,
)  # fmt: skip
from .pointwise import quantize_items, run_embed, run_quantize
from .product import product_bytes, product_items, run_product
from .rotate import run_rotate, run_turn
from .route import run_route, run_sort, tile_count
from .rows import (
    run_act_rows,
    run_add_rows,
    run_gate_rows,
    run_head_norm,
    run_multiply_rows,
    run_norm_rows,
)
from .scores import run_soft_cap
from .simd import get_i64, set_i64
from .threads import (
    atomic_add,
    atomic_load,
    atomic_store,
    call_address,
    compare_exchange,
    fence,
    pause,
    ticks,
)
from .tiles import sparse_tokens

FIELD = 1023
SPINS = 2000  # pauses before the first yield: about 50 µs, more than any op of a decode step waits
IDLE_YIELDS = 4000  # yields without a new step before a thread parks: a few ms
CHUNK_BYTES = 48 * 1024  # a chunk of a product should cost a few µs: more than its two atomic operations
CHUNKS_A_THREAD = 6
EXPERT_CHUNKS = 24  # a thread's: experts may have very different numbers of rows
SHARED_ELEMENTS = 1024  # quantizing fewer costs less than a microsecond: not worth a second thread


@inlined
def op_tokens(op, step):
    code = get_i64(op)
    last = (code == PRODUCT and get_i64(op + 8 * P_LAST)) or (code == QUANTIZE and get_i64(op + 8 * Q_LAST))
    return get_i64(step + 8 * STEP_LOGITS) if last else get_i64(step + 8 * STEP_TOKENS)


@kernel
def op_items(op, step):
    """How many items the op can be cut into."""
    code = get_i64(op)
    if code == PRODUCT:
        return product_items(op)
    if code == ATTEND:
        return attend_items(op, step)
    if code == ATTEND8:
        return attend8_items(op, step)
    if code == QUANTIZE:
        return quantize_items(op_tokens(op, step))
    if code == CONV:
        return conv_items(op)
    if code == LINEAR_ATTENTION:
        return linear_attention_items(op)
    if code == SETTLE:
        return 1
    if ROUTE <= code <= EXPERT_SUM:
        return items_of_experts(code, op, get_i64(step + 8 * STEP_TOKENS))
    if code == SOFT_CAP:
        return get_i64(step + 8 * STEP_LOGITS)
    return get_i64(step + 8 * STEP_TOKENS)


@inlined
def items_of_experts(code, op, tokens):
    if code == EXPERTS:
        return experts_items(op)
    if code == PACK:
        return tile_count(get_i64(op + 8 * X_TABLE))
    if code == QUANTIZE_ROWS:
        return tokens * get_i64(op + 8 * Q_EACH)
    return 1 if code == SORT else tokens


@kernel
def op_chunks(op, step, items, threads):
    """Into how many chunks they are bundled; one at least, be it empty.

    Every word then gets every step's number. One that kept an older number would offer a thread of that step
    that comes late a chunk while the next step runs.
    """
    if get_i64(op) == EXPERTS:
        wanted = max(items * product_bytes(op) // CHUNK_BYTES, threads)
        return max(min(min(wanted, items), min(EXPERT_CHUNKS * threads, FIELD)), 1)
    if get_i64(op) == PRODUCT:
        cost = items * product_bytes(op) * (1 + op_tokens(op, step) // 4)
        wanted = max(cost // CHUNK_BYTES, 1)
        wanted = (wanted + threads - 1) // threads * threads  # as many for each
    elif get_i64(op) == QUANTIZE and op_tokens(op, step) <= sparse_tokens():
        wanted = threads if get_i64(op + 8 * Q_PADDED) * op_tokens(op, step) >= SHARED_ELEMENTS else 1
    else:
        wanted = items
    return max(min(min(wanted, items), CHUNKS_A_THREAD * threads), 1)


@kernel
def run_chunk(op, step, first, last, scratch):
    code = get_i64(op)
    if code == PRODUCT:
        run_product(op, step, first, last, scratch)
    elif code == QUANTIZE:
        run_quantize(op, step, first, last, scratch)
    elif code == ATTEND:
        run_attend(op, step, first, last, scratch)
    elif code == ROTATE:
        run_rotate(op, step, first, last)
    elif code == ATTEND8:
        run_attend8(op, step, first, last, scratch)
    elif code == NORM_ROWS:
        run_norm_rows(op, first, last)
    elif code == GATE_ROWS:
        run_gate_rows(op, first, last)
    elif code == ACT_ROWS:
        run_act_rows(op, first, last)
    elif code == ADD_ROWS:
        run_add_rows(op, first, last)
    elif code == HEAD_NORM:
        run_head_norm(op, first, last)
    elif code == ROTATE8:
        run_rotate8(op, step, first, last, scratch)
    elif code == TURN:
        run_turn(op, step, first, last)
    elif code == SOFT_CAP:
        run_soft_cap(op, first, last)
    elif code == EMBED:
        run_embed(op, step, first, last)
    elif code == CONV:
        run_conv(op, step, first, last, scratch)
    elif code == LINEAR_ATTENTION:
        run_linear_attention(op, step, first, last, scratch)
    elif code == MULTIPLY_ROWS:
        run_multiply_rows(op, first, last)
    elif code == SETTLE:
        run_settle(op, step)
    elif ROUTE <= code <= EXPERT_SUM:
        run_part_of_experts(code, op, step, first, last, scratch)


@kernel
def run_part_of_experts(code, op, step, first, last, scratch):
    if code == EXPERTS:
        run_experts(op, first, last, scratch)
    elif code == QUANTIZE_ROWS:
        run_quantize_rows(op, first, last, scratch)
    elif code == PACK:
        run_pack(op, first, last)
    elif code == EXPERT_SUM:
        run_expert_sum(op, first, last, scratch)
    elif code == ROUTE:
        run_route(op, step, first, last, scratch)
    elif first < last:
        run_sort(op, step, scratch)


@kernel
def take_chunk(word, number, chunks):
    """The next chunk of the op in step `number`, as chunks << 10 | chunk; −1: all taken; −2: a later step
    has begun.

    `chunks` is used only by the first to come: later ones read it from the word, because a late thread may
    already see the next step's token count.
    """
    while True:
        seen = atomic_load(word)
        ahead = (seen >> 30) - number
        if ahead > 0:
            return -2
        if ahead < 0:
            new, taken, total = (number << 30) | (chunks << 20) | (1 << 10), 0, chunks
        else:
            taken, total = (seen >> 10) & FIELD, (seen >> 20) & FIELD
            new = seen + (1 << 10)
        if taken >= total:
            return -1
        if compare_exchange(word, seen, new):
            return (total << 10) | taken


@kernel
def await_op(word, number, yield_address):
    """Spin, then yield, until every chunk of the op is done."""
    spins = 0
    while True:
        seen = atomic_load(word)
        if (seen >> 30) != number or (seen & FIELD) >= ((seen >> 20) & FIELD):
            return
        spins += 1
        if spins < SPINS:
            pause()
        else:
            call_address(yield_address)


@kernel
def run_plan(team, thread, number):
    """Walk the op table once, as one of the team."""
    ops, count, words = get_i64(team + 8 * T_OPS), get_i64(team + 8 * T_COUNT), get_i64(team + 8 * T_WORDS)
    step, threads = get_i64(team + 8 * T_STATE), get_i64(team + 8 * T_THREADS)
    scratch = get_i64(team + 8 * T_SCRATCH) + thread * get_i64(team + 8 * T_SCRATCH_SIZE)
    times = get_i64(team + 8 * T_TIMES) if thread == 0 else 0
    for i in range(count):
        before = ticks() if times else 0
        op, word = ops + RECORD * i, words + 64 * i
        items = op_items(op, step)
        chunks = op_chunks(op, step, items, threads)
        while True:
            taken = take_chunk(word, number, chunks)
            if taken < 0:
                break
            chunk, total = taken & FIELD, taken >> 10
            run_chunk(op, step, chunk * items // total, (chunk + 1) * items // total, scratch)
            atomic_add(word, 1)
        if taken == -2:
            return
        await_op(word, number, get_i64(team + 8 * T_YIELD))
        if times:
            set_i64(times + 8 * i, get_i64(times + 8 * i) + ticks() - before)


@kernel
def step(team):
    """One step, begun and finished by the calling thread (number 0). Returns its number."""
    number = get_i64(team + 8 * T_STEP) + 1
    atomic_store(team + 8 * T_STEP, number)
    fence()
    run_plan(team, 0, number)
    return number


@kernel
def parked(team):
    """How many threads sleep in Python."""
    sleeping = 0
    for thread in range(1, get_i64(team + 8 * T_THREADS)):
        sleeping += atomic_load(team + 8 * (T_PARKED + 8 * thread))
    return sleeping


@kernel
def serve(team, thread, last):
    """Thread `thread` waits for the step after number `last`, runs it and the ones after it.

    Returns the number of the last step run when it has been idle for long, or −1 when the team ends.
    """
    idle = 0
    while True:
        if atomic_load(team + 8 * T_STOP):
            return -1
        number = atomic_load(team + 8 * T_STEP)
        if number != last:
            run_plan(team, thread, number)
            last, idle = number, 0
        elif idle < SPINS:
            idle += 1
            pause()
        elif idle < SPINS + IDLE_YIELDS:
            idle += 1
            call_address(get_i64(team + 8 * T_YIELD))
        else:
            return last
