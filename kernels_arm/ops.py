"""The plan's instruction set: op codes and, for each, the fields of its record.

A record is 24 int64: field 0 is the op code, the others are addresses (bytes), counts and strides (bytes)
as named here. Records never change after loading; what changes per step stands in the step words.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

FIELDS = 24
RECORD = 8 * FIELDS  # bytes

EMBED, QUANTIZE, PRODUCT, ROTATE, ATTEND, ROTATE8, ATTEND8, NORM_ROWS, GATE_ROWS, ADD_ROWS = range(1, 11)
HEAD_NORM, ACT_ROWS, TURN, SOFT_CAP = range(11, 15)
CONV, LINEAR_ATTENTION, SETTLE, MULTIPLY_ROWS = range(40, 44)
ROUTE, SORT, QUANTIZE_ROWS, PACK, EXPERTS, EXPERT_SUM = range(30, 36)
NAMES = {
    EMBED: "embed", QUANTIZE: "quantize", PRODUCT: "product", ROTATE: "rotate", ATTEND: "attend",
    ROTATE8: "rotate", ATTEND8: "attend", NORM_ROWS: "norm", GATE_ROWS: "gate", ADD_ROWS: "add",
    HEAD_NORM: "norm", ACT_ROWS: "act", TURN: "rotate", SOFT_CAP: "softcap", CONV: "conv",
    LINEAR_ATTENTION: "linear attention", SETTLE: "settle", MULTIPLY_ROWS: "multiply",
    ROUTE: "route", SORT: "route", QUANTIZE_ROWS: "quantize", PACK: "pack", EXPERTS: "experts",
    EXPERT_SUM: "sum",
}  # fmt: skip

# ids int64 [m] → out float32 [m, stride/4]
EMBED_WEIGHTS, EMBED_SCALE, EMBED_BITS, EMBED_STEPS, EMBED_OUT, EMBED_STRIDE = range(1, 7)
EMBED_STARTS, EMBED_COLUMNS, EMBED_EXCESS = range(7, 10)  # starts = 0: no excess
EMBED_POSITIONS = 10  # not 0: a row for each token's position, not for its id

# activations, by the `act` of Gated, Activation and OutputGate
SILU, GELU_TANH, GELU, RELU, RELU2, SIGMOID, XIELU = range(7)
ACTS = {
    "silu": SILU, "gelu_tanh": GELU_TANH, "gelu": GELU, "relu": RELU, "relu2": RELU2, "sigmoid": SIGMOID
}  # fmt: skip
PLAIN_ACTS = {**ACTS, "xielu": XIELU}  # of Activation, which may have numbers of its own
ACT_NUMBERS = {"xielu": ("positive", "negative", "linear")}

# float32 rows → packed int8 digits. KIND says what is applied to a row first.
PLAIN, NORM, GATED, ACTED, CENTERED, CLAMPED = range(6)
Q_KIND, Q_IN, Q_IN_STRIDE, Q_COLUMNS, Q_PADDED, Q_FLOATS, Q_LIMITS, Q_WEIGHT, Q_OUT, Q_SUMS = range(1, 11)
Q_EXTRAS, Q_GROUPS, Q_ROWS, Q_LAST, Q_SHARES, Q_STEPS, Q_WIDES, Q_WIDE, Q_ACT, Q_EACH = range(11, 21)
# Q_FLOATS: float32 [inverse_scale or levels, epsilon, columns, numbers of the activation …]
# Q_GROUPS: int32 [extras], 4-column groups that have a high digit; Q_WIDE: int32 [2, wides], the flattened
# channels, and the place of each among the digits of those groups; Q_ROWS: int8 [tokens, padded + 4 · extras
# rounded up to 64], the digits of a few tokens row by row for sparse excess, or 0; Q_LAST: only the rows
# wanted as logits; Q_SHARES: float32 [padded], levels / limit, where each token has a step of its own, or 0;
# Q_STEPS: float32 [tokens], these steps, or ones; Q_SUMS: int32 [tokens], of up to sparse_tokens(tier) tokens
# [tokens, SUM_SLICES]
# QUANTIZE_ROWS: Q_EACH rows a token, whose digits stand row by row as in Q_ROWS, and one sum a row

# packed digits · packed weights → float32 rows
P_BITS, P_X, P_SUMS, P_PADDED, P_WEIGHTS, P_PANELS, P_SCALE, P_BIAS, P_OUT, P_STRIDE, P_ADD = range(1, 12)
P_EXTRAS, P_GROUPS, P_ROWS, P_STARTS, P_BASES, P_LOOKUPS, P_LAST, P_EXCESS_BYTES = range(12, 20)
P_EVENS, P_STEPS, P_WIDES, P_WIDE = range(20, 24)
# P_GROUPS has P_EVENS even ones, which stand first; P_STEPS is Q_STEPS
# P_ADD: add to what is in out (the residual); P_STARTS int32 [2 · panels + 1], P_BASES uint16 [L], P_LOOKUPS
# [L, LOOKUP]: the sparse excess (excess.py), all 0 where there is none; P_EXCESS_BYTES: for who measures

# which experts a token goes to (route.py), and what that says of all tokens
C_LOGITS, C_STRIDE, C_EXPERTS, C_KEPT, C_KIND, C_SELECT, C_NORMALIZE, C_GROUPS, C_KEEP = range(1, 10)
C_FLOATS, C_SHARES, C_SHARES_STRIDE, C_TABLE, C_PAIRS = range(10, 15)
BY_SOFTMAX, BY_SIGMOID, BY_TOPK_SOFTMAX = range(3)
KINDS = {"softmax": BY_SOFTMAX, "sigmoid": BY_SIGMOID, "topk_softmax": BY_TOPK_SOFTMAX}  # of Route
# C_SELECT: float32 [experts], added before experts are chosen, or 0; C_FLOATS: float32 [scale, floor];
# C_SHARES: float32 [tokens, kept]; C_TABLE: as `choice_words` has it; C_PAIRS: kept times the most tokens

# the products of the chosen experts (experts.py): a PRODUCT's fields but for these, panels being an expert's
X_TABLE, X_DELTA, X_VALUE, X_EACH, X_HIGH = P_ADD, P_BASES, P_LOOKUPS, P_LAST, P_EXCESS_BYTES
# P_STARTS: int32 [experts · panels + 1], where the entries of each panel begin among X_DELTA uint8 [E] and
# X_VALUE int8 [E], or 0; X_HIGH: int32 [padded], as `lookups.high_places` has it; X_EACH: choices that read
# one row of digits, or 0: the rows stand in the order of the choices; P_ROWS: digits row by row; P_X: tiles
# of many digits, each with its sums and steps

# the sum of a token's experts: shares times rows
S_SHARES, S_SHARES_STRIDE, S_ROWS, S_ROWS_STRIDE, S_COLUMNS, S_KEPT, S_TABLE, S_OUT, S_OUT_STRIDE = range(
    1, 10
)

# rotary embedding in place on q; k and v are appended to the cache, to a sequence's slot of it. R_COS = 0:
# nothing is turned. TURN: R_HEADS of R_SIZE are turned in place, and no more. R_RING, A_RING: positions after
# which places are used again; what stands in the first of the R_CONTEXT places stands behind the ring, too
R_QKV, R_STRIDE, R_HEADS, R_GROUPS, R_SIZE, R_COS, R_SIN, R_KEYS, R_VALUES, R_CONTEXT = range(1, 11)
R_RING = 11

# softmax(q·kᵀ)·v
A_QKV, A_STRIDE, A_HEADS, A_GROUPS, A_SIZE, A_FLOATS, A_KEYS, A_VALUES, A_CONTEXT, A_OUT, A_OUT_STRIDE = (
    range(1, 12)
)
A_WINDOW, A_SINKS, A_SLOPES, A_CAP, A_RING = range(12, 17)
# keys float32 [slot, g, context/16, d, 16], values float32 [slot, g, context, d padded to 16];
# A_FLOATS: float32 [scale]; A_WINDOW: positions that a query sees, its own included, or 0: all before it;
# A_SINKS, A_SLOPES: float32 [h] or 0; A_CAP: float32 [cap, 2 / cap, 2 · cap] or 0

# the same over an int8 cache (attention8.py has the layouts); one set of fields serves both records;
# I_COS = 0: nothing is turned
I_QKV, I_STRIDE, I_HEADS, I_GROUPS, I_SIZE, I_COS, I_SIN, I_FLOATS, I_CONTEXT, I_QUERIES = range(1, 11)
I_KEYS, I_KEY_SCALES, I_VALUES, I_VALUE_SCALES, I_OUT, I_OUT_STRIDE, I_PARTS, I_COUNTERS = range(11, 19)
I_WINDOW, I_SINKS, I_SLOPES, I_CAP = range(19, 23)
# I_PARTS: float32 [g, FEW_TOKENS · h/g, context/256, d + 16], what rows of a few tokens get from each block;
# I_COUNTERS: int64 [g, 8], blocks of a group that are done, 0 between steps

# float32 rows → float32 rows (rows.py), zeros beyond COLUMNS up to a multiple of 16: the norm of IN, its
# activation, its activation times OTHER, or its sum with OTHER
ROWS_IN, ROWS_IN_STRIDE, ROWS_OUT, ROWS_OUT_STRIDE, ROWS_COLUMNS, ROWS_FLOATS, ROWS_WEIGHT = range(1, 8)
ROWS_OTHER, ROWS_OTHER_STRIDE, ROWS_ACT, ROWS_HEADS, ROWS_CENTERED, ROWS_WEIGHT_STEP = range(8, 14)
# NORM_ROWS with an OTHER: OUT, which is OTHER, becomes the sum of both, and IN is overwritten
# HEAD_NORM: HEADS of COLUMNS side by side in IN, each becomes its norm in place; WEIGHT_STEP: bytes from a
# head's weight to the next one's; norms with CENTERED are of x − its mean
# SOFT_CAP: IN in place, of the rows wanted as logits; ROWS_FLOATS: as A_CAP
# GATE_ROWS: HEADS columns of IN, each for COLUMNS / HEADS of OTHER; 0: as many as OTHER has
# ROWS_FLOATS: float32 [epsilon, columns], of ACT_ROWS the activation's numbers; ROWS_WEIGHT: float32 [columns
# padded to 16]

# MULTIPLY_ROWS: IN times OTHER

# depthwise causal convolution over a state of rows (conv.py): weight float32 [taps, columns padded to 16]
C_IN, C_IN_STRIDE, C_OUT, C_OUT_STRIDE, C_COLUMNS, C_TAPS, C_WEIGHT, C_BIAS, C_SILU, C_ROWS, C_ZEROS = range(
    1, 12
)

# attention through a matrix for each head (linear_attention.py), whose state is that of the last steps' floor
L_Q, L_Q_STRIDE, L_K, L_K_STRIDE, L_V, L_V_STRIDE, L_DT, L_DT_STRIDE, L_BETA, L_BETA_STRIDE = range(1, 11)
L_OUT, L_OUT_STRIDE, L_HEADS, L_KEY_HEADS, L_KEY_SIZE, L_VALUE_SIZE, L_FLOATS, L_STATE = range(11, 19)
L_KEYS, L_UPDATES, L_FLOORS = range(19, 22)
# L_BETA: 0 without the delta rule; L_FLOATS: float32 [bias [h], decay [h], skip [h], least step]

# the end of a step of such states: their floors rise
S_FLOORS = 1
FLOOR_BYTES = 24
# L_FLOORS, S_FLOORS: int64 [slots, 3], by slot: positions that are summed up in the states, which half of
# L_KEYS holds the keys of those after them, and how many positions were ever written

# how sparse excess is gathered (excess.py): addresses and counts
J_DELTA, J_VALUE, J_ENTRIES, J_COLUMNS, J_PANELS, J_HIGH, J_STARTS, J_BASES, J_LOOKUPS, J_SCRATCH = range(10)
JOB_WORDS = 10
LOOKUP = 128  # bytes: 64 picks, 64 values

# step words (int64)
STEP_TOKENS, STEP_SPANS, STEP_LOGITS, STEP_IDS, STEP_TABLE, STEP_ROWS = range(6)
STEP_WORDS = 8
# STEP_TABLE: int64 [spans, 4], whose tokens they are (spans.py); STEP_ROWS: int64 [logits], rows wanted as
# logits
SPAN_SLOT, SPAN_ROW, SPAN_ROWS, SPAN_PAST = range(4)
SPAN_BYTES = 32
SPAN = 8  # most rows of a span: a work item of attention is a span and a K/V group

# team words (int64), a cache line apart where threads write them
T_STEP, T_STOP = 0, 8  # the step number; non-zero when the team is to end
T_THREADS, T_OPS, T_COUNT, T_WORDS, T_STATE, T_SCRATCH, T_SCRATCH_SIZE, T_YIELD, T_TIMES = range(16, 25)
# T_TIMES: int64 [count], to which thread 0 adds each op's ticks, or 0
T_PARKED = 32  # one word per thread, 8 apart: it sleeps until its Python thread is woken
MAX_THREADS = 64
TEAM_WORDS = T_PARKED + 8 * MAX_THREADS

SUM_SLICES = 4  # a few tokens' rows are quantized in so many slices, each with a sum of its own
_SPARSE_TOKENS = {"avx512vnni": 64, "avx2": 16}  # other tiers: 8
MOST_SPARSE = max(_SPARSE_TOKENS.values())
ATTEND_ROWS = 8  # query rows that share a load
KV_BLOCK = 256  # positions of an int8 cache with one maximum and one step of the weights: part of the format
MOST_STEP = 512  # tokens of a step: enough to reuse each panel of weights, and 10-40 MB of buffers
KEPT = 32  # positions that states which sum up can be cut back by: 4 spans, more than drafts are long
VALUE_BLOCK = 32  # columns of a matrix state that are a work item: with 128 rows 16 KiB, half of a small L1
FEW_TOKENS = SPAN  # of a step of one span, blocks of the context are shared out among threads; else spans


def write_spans(table: np.ndarray, segments: Iterable[tuple[int, int, int]]) -> int:
    """Segments (slot, rows, past), one after the other, → `table` int64 [n, 4]; returns how many spans."""
    count = row = 0
    for slot, rows, past in segments:
        for start in range(0, rows, SPAN):
            table[count] = slot, row + start, min(SPAN, rows - start), past + start
            count += 1
        row += rows
    return count


# int32 words of what is known of a step's choices, the C_TABLE of Route: how many experts are used, tiles of
# the many rows, experts, pairs at most; then by used expert USED_WORDS, and by pair (a token and one of its
# experts) the arrays of route.py
USED_WORDS, HEADER_WORDS, PAIR_ARRAYS = 4, 16, 5


def choice_words(experts: int, pairs: int) -> int:
    """Words of that for `experts` in all and at most so many pairs."""
    return HEADER_WORDS + USED_WORDS * experts + PAIR_ARRAYS * pairs


def sparse_tokens(tier: str) -> int:
    """Most tokens whose weights are multiplied as they stand: for more, panels made ready are faster."""
    return _SPARSE_TOKENS.get(tier, 8)


def product_scratch(columns: int, wides: int) -> int:
    """Bytes a thread needs to quantize a row and to multiply a panel of `columns`, padded: a tile's sums, the
    ready panel, and its `wides` flattened columns side by side."""
    return 1024 + 16 * (columns + (wides + 15) // 16 * 16)


def attention_scratch(size: int, context: int) -> int:
    """Bytes a thread needs to attend: queries, sums, one output tile, weights and scores of 8 rows."""
    return ATTEND_ROWS * (8 * size + 64 + 12 * context) + 64


def attention8_scratch(size: int, context: int) -> int:
    """The same over an int8 cache: query and weight digits, scores, sums, and the parts of 8 rows' blocks."""
    width, blocks = (size + 15) // 16 * 16, context // KV_BLOCK
    parts = 4 * ATTEND_ROWS * (width + 16) * blocks
    return (16 + 64) * width + 16 * KV_BLOCK + 2 * 16 * KV_BLOCK + parts + 256


def linear_attention_scratch(size: int) -> int:
    """Bytes a thread needs for linear attention with keys of `size`: a block of the matrix, two keys, a
    query, an update, the sums, 16 lanes."""
    padded = (size + 15) // 16 * 16
    return 4 * padded * (VALUE_BLOCK + 3) + 8 * VALUE_BLOCK + 64 * 4
