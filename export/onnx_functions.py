"""The bodies of flatlm's ONNX functions: what each call of docs/format.md means in standard operators.

onnxruntime inlines a body where the function is called and folds everything that depends on constants
alone, so an unpacked weight exists once, made at load. Only operators that have float32 kernels for CPU
and for CUDA are used. Attention is spelled out because the two disagree on `Attention(is_causal)` when
there is a past (onnxruntime issue 29020).

FlatLinear has two products that give the same integers, and the constant `signed` picks one; the other
is gone once onnxruntime has loaded the model. uint8 · uint8 is the default: int8 activations have no
x86 kernel (measured 0.8 against 35 GMAC/s on one core with VNNI), and uint8 · int8 saturates on AVX2.
int8 · int8 is the only product CUDA has.

Legend: B batch, T tokens of a call, t keys, h heads, g key/value heads, d head size, P panels, F columns.
"""

from __future__ import annotations

from functools import cache

import onnx
import onnx.parser

DOMAIN = "flatlm"
VERSION = 1
OPSET = 23

# Packed weight → integers [columns, rows], each `offset` too high: [P, steps, 16, 4, e] becomes
# [P, k, 16], in which order the excess counts its positions.
_UNPACK = """
    elements = Cast <to = 3> (weight)
    by_column = Transpose <perm = [0, 1, 4, 3, 2]> (elements)
    panel_shape = Constant <value_ints = [0, -1, 16]> ()
    panels = Reshape (by_column, panel_shape)
    panels_shape = Shape (panels)
    flat_shape = Constant <value_ints = [-1]> ()
    flat = Reshape (panels, flat_shape)

    delta = Cast <to = 7> (excess_delta)
    zero = Constant <value_int = 0> ()
    position = CumSum (delta, zero)
    last = Constant <value_ints = [-1]> ()
    index = Unsqueeze (position, last)
    offset = Constant <value_int: int = @offset> ()
    offset_int32 = Cast <to = 6> (offset)
    value = Cast <to = 6> (excess_value)
    total_int32 = Add (value, offset_int32)
    total = Cast <to = 3> (total_int32)
    scattered = ScatterND (flat, index, total)

    whole = Reshape (scattered, panels_shape)
    columns_first = Transpose <perm = [1, 0, 2]> (whole)
    matrix_shape = Constant <value_ints = [0, -1]> ()
    padded = Reshape (columns_first, matrix_shape)
    rows = Constant <value_int: int = @rows> ()
    columns = Constant <value_int: int = @columns> ()
    first_axis = Constant <value_ints = [0]> ()
    columns_1 = Unsqueeze (columns, first_axis)
    rows_1 = Unsqueeze (rows, first_axis)
    starts = Constant <value_ints = [0, 0]> ()
    ends = Concat <axis = 0> (columns_1, rows_1)
    integers = Slice (padded, starts, ends)
"""

_BODIES = {
    "RotaryTable": """(position_ids, inverse_frequency) => (cos, sin) {
    position = Cast <to = 11> (position_ids)
    frequency = Cast <to = 11> (inverse_frequency)
    last = Constant <value_ints = [-1]> ()
    column = Unsqueeze (position, last)
    angle = Mul (column, frequency)
    cos_double = Cos (angle)
    sin_double = Sin (angle)
    cos = Cast <to = 1> (cos_double)
    sin = Cast <to = 1> (sin_double)
}""",
    "FlatEmbedding": f"""<rows, columns, offset> (ids, weight, scale, excess_delta, excess_value) => (y) {{
{_UNPACK}
    picked = Gather <axis = 1> (integers, ids)
    embedded = Transpose <perm = [1, 2, 0]> (picked)
    raised = Cast <to = 1> (embedded)
    offset_float = Cast <to = 1> (offset)
    centred = Sub (raised, offset_float)
    row_scale = Gather (scale, ids)
    row_scale_1 = Unsqueeze (row_scale, last)
    y = Mul (centred, row_scale_1)
}}""",
    "Norm": """<epsilon> (x, weight) => (y) {
    y = RMSNormalization <axis = -1, epsilon: float = @epsilon> (x, weight)
}""",
    "FlatLinear": f"""<rows, columns, offset, levels>
    (x, weight, scale, bias, inverse_scale, limit, source, low, excess_delta, excess_value, signed) => (y) {{
{_UNPACK}
    steps = Mul (x, inverse_scale)
    rounded = Round (steps)
    floor = Neg (limit)
    raised = Max (rounded, floor)
    whole_x = Min (raised, limit)

    wide = Gather <axis = -1> (whole_x, source)
    below = Neg (low)
    wide_raised = Max (wide, below)
    earlier = Min (wide_raised, low)
    rest = Sub (wide, earlier)
    levels_int = Constant <value_int: int = @levels> ()
    level = Cast <to = 1> (levels_int)
    minus_level = Neg (level)
    piece = Clip (rest, minus_level, level)

    repeated = Gather <axis = 0> (integers, source)
    is_signed = Cast <to = 9> (signed)
    acc = If (is_signed) <
        then_branch = signed_product () => (signed_acc) {{
            signed_x = Cast <to = 3> (piece)
            signed_x_zero = Cast <to = 3> (zero)
            signed_zero = Cast <to = 3> (offset)
            signed_acc = MatMulInteger (signed_x, repeated, signed_x_zero, signed_zero)
        }},
        else_branch = unsigned_product () => (unsigned_acc) {{
            middle = Constant <value_int = 128> ()
            middle_float = Cast <to = 1> (middle)
            middle_int16 = Cast <to = 5> (middle)
            positive_x = Add (piece, middle_float)
            unsigned_x = Cast <to = 2> (positive_x)
            unsigned_x_zero = Cast <to = 2> (middle)
            wide_weight = Cast <to = 5> (repeated)
            positive_weight = Add (wide_weight, middle_int16)
            unsigned_weight = Cast <to = 2> (positive_weight)
            zero_int64 = Add (offset, middle)
            unsigned_zero = Cast <to = 2> (zero_int64)
            unsigned_acc = MatMulInteger (unsigned_x, unsigned_weight, unsigned_x_zero, unsigned_zero)
        }}>
    acc_float = Cast <to = 1> (acc)
    scaled = Mul (acc_float, scale)
    y = Add (scaled, bias)
}}""",
    "RotaryAttention": """<num_heads, kv_num_heads, head_size, scale>
    (qkv, cos, sin, past_key, past_value) => (y, present_key, present_value) {
    first_axis = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    keep_1 = Constant <value_ints = [0]> ()
    keep_2 = Constant <value_ints = [0, 0]> ()
    infer = Constant <value_ints = [-1]> ()
    h = Constant <value_int: int = @num_heads> ()
    g = Constant <value_int: int = @kv_num_heads> ()
    d = Constant <value_int: int = @head_size> ()
    h_1 = Unsqueeze (h, first_axis)
    g_1 = Unsqueeze (g, first_axis)
    d_1 = Unsqueeze (d, first_axis)
    hg_1 = Add (h_1, g_1)

    heads_shape = Concat <axis = 0> (keep_2, infer, d_1)
    tokens_first = Reshape (qkv, heads_shape)
    heads_first = Transpose <perm = [0, 2, 1, 3]> (tokens_first)
    qk_and_v = Concat <axis = 0> (hg_1, g_1)
    qk, v = Split <axis = 1> (heads_first, qk_and_v)
    rotated = RotaryEmbedding (qk, cos, sin)
    q_and_k = Concat <axis = 0> (h_1, g_1)
    q, k = Split <axis = 1> (rotated, q_and_k)
    present_key = Concat <axis = 2> (past_key, k)
    present_value = Concat <axis = 2> (past_value, v)

    T_1 = Shape <start = 2, end = 3> (q)
    t_1 = Shape <start = 2, end = 3> (present_key)
    T = Squeeze (T_1, first_axis)
    t = Squeeze (t_1, first_axis)
    past = Sub (t, T)
    zero = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    key_position = Range (zero, t, step)
    query_position = Range (past, t, step)
    query_column = Unsqueeze (query_position, one)
    visible = LessOrEqual (key_position, query_column)
    seen = Constant <value_float = 0.0> ()
    unseen = Constant <value_float = -inf> ()
    mask = Where (visible, seen, unseen)

    group_shape = Concat <axis = 0> (keep_1, g_1, infer, d_1)
    grouped_q = Reshape (q, group_shape)
    keys = Transpose <perm = [0, 1, 3, 2]> (present_key)
    products = MatMul (grouped_q, keys)
    factor = Constant <value_float: float = @scale> ()
    grouped_scores = Mul (products, factor)
    grouped_shape = Shape (grouped_scores)
    scores_shape = Concat <axis = 0> (keep_1, h_1, T_1, t_1)
    scores = Reshape (grouped_scores, scores_shape)
    masked = Add (scores, mask)
    weights = Softmax <axis = -1> (masked)
    grouped_weights = Reshape (weights, grouped_shape)
    grouped_out = MatMul (grouped_weights, present_value)
    out_shape = Concat <axis = 0> (keep_1, h_1, T_1, d_1)
    out_heads = Reshape (grouped_out, out_shape)
    out_tokens = Transpose <perm = [0, 2, 1, 3]> (out_heads)
    flat_shape = Concat <axis = 0> (keep_2, infer)
    y = Reshape (out_tokens, flat_shape)
}""",
    "SwiGLU": """(gate_up) => (y) {
    gate, up = Split <axis = -1, num_outputs = 2> (gate_up)
    sigmoid = Sigmoid (gate)
    silu = Mul (gate, sigmoid)
    y = Mul (silu, up)
}""",
    "Embedding": """(ids, weight) => (y) {
    y = Gather (weight, ids)
}""",
    "Linear": """(x, weight, bias) => (y) {
    transposed = Transpose <perm = [1, 0]> (weight)
    product = MatMul (x, transposed)
    y = Add (product, bias)
}""",
}


@cache
def function(name: str) -> onnx.FunctionProto:
    """The function `name` as it goes into a model. KeyError for a name docs/format.md does not have."""
    header = f'<opset_import: ["": {OPSET}], domain: "{DOMAIN}">'
    return onnx.parser.parse_function(f"{header}\n{name} {_BODIES[name]}")
