"""The bodies of flatlm's ONNX functions: what each call of docs/format.md means in standard operators.

onnxruntime inlines a body where the function is called and folds everything that depends on constants
alone, so an unpacked weight exists once, made at load. Only operators that have float32 kernels for CPU
and for CUDA are used. Attention is spelled out because the two disagree on `Attention(is_causal)` when
there is a past (onnxruntime issue 29020).

FlatLinear has two products that give the same integers, and the constant `signed` picks one; the other
is gone once onnxruntime has loaded the model. uint8 · uint8 is the default: int8 activations have no
fast x86 kernel (0.8 against 35 GMAC/s for one row on one core with VNNI), and uint8 · int8 saturates on
AVX2. int8 · int8 is the only product CUDA has.

Legend: B batch, T tokens of a call, t keys, h heads, g key/value heads, d head size, P panels, F columns.
"""

from __future__ import annotations

from functools import cache

import onnx
import onnx.parser

DOMAIN = "flatlm"
VERSION = 1
OPSET = 23

# Packed weight → `plane` [k padded, n padded], uint8, each element its integer + offset + 128. Its rows are
# the columns of the weight in the order (step, lane j, half e), because that needs two cheap moves of one
# axis; `order[c]` is the plane's row of column c. What is folded stays until onnxruntime has folded the
# whole model, so every step here costs a byte per weight of memory at load.
_UNPACK = """
    elements = Cast <to = 2> (weight)
    sign_bit_int = Constant <value_int = 128> ()
    sign_bit = Cast <to = 2> (sign_bit_int)
    raised = BitwiseXor (elements, sign_bit)
    rows_last = Transpose <perm = [0, 1, 3, 4, 2]> (raised)
    panels_inside = Transpose <perm = [1, 2, 3, 0, 4]> (rows_last)

    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    first_axis = Constant <value_ints = [0]> ()
    last = Constant <value_ints = [-1]> ()
    halves = Shape <start = 4, end = 5> (elements)
    steps_lanes = Constant <value_ints = [-1, 4]> ()
    steps_lanes_halves = Concat <axis = 0> (steps_lanes, halves)
    steps_1 = Shape <start = 1, end = 2> (elements)
    four = Constant <value_ints = [4]> ()
    columns_a_step = Mul (halves, four)
    width_1 = Mul (steps_1, columns_a_step)
    width = Squeeze (width_1, first_axis)
    plane_row = Range (zero, width, one)
    plane_rows = Reshape (plane_row, steps_lanes_halves)
    by_column = Transpose <perm = [0, 2, 1]> (plane_rows)
    order = Reshape (by_column, last)
    plane_shape = Concat <axis = 0> (width_1, last)
    plain = Reshape (panels_inside, plane_shape)

    delta = Cast <to = 7> (excess_delta)
    position = CumSum (delta, zero)
    row = Div (position, width)
    column = Mod (position, width)
    at_row = Gather (order, column)
    index_row = Unsqueeze (at_row, last)
    index_column = Unsqueeze (row, last)
    index = Concat <axis = 1> (index_row, index_column)
    offset = Constant <value_int: int = @offset> ()
    zero_point_int = Add (offset, sign_bit_int)
    value = Cast <to = 7> (excess_value)
    total_int = Add (value, zero_point_int)
    total = Cast <to = 2> (total_int)
    plane = ScatterND (plain, index, total)
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
    columns = Constant <value_int: int = @columns> ()
    columns_1 = Unsqueeze (columns, first_axis)
    own = Slice (order, first_axis, columns_1)
    picked = Gather <axis = 1> (plane, ids)
    ordered = Gather <axis = 0> (picked, own)
    embedded = Transpose <perm = [1, 2, 0]> (ordered)
    positive = Cast <to = 1> (embedded)
    zero_point = Cast <to = 1> (zero_point_int)
    integers = Sub (positive, zero_point)
    row_scale = Gather (scale, ids)
    row_scale_1 = Unsqueeze (row_scale, last)
    y = Mul (integers, row_scale_1)
}}""",
    "Norm": """<epsilon> (x, weight) => (y) {
    y = RMSNormalization <axis = -1, epsilon: float = @epsilon> (x, weight)
}""",
    "FlatLinear": f"""<rows, columns, offset, levels>
    (x, weight, scale, bias, inverse_scale, limit, source, low, excess_delta, excess_value, signed) => (y) {{
{_UNPACK}
    steps = Mul (x, inverse_scale)
    rounded = Round (steps)
    lowest = Neg (limit)
    not_below = Max (rounded, lowest)
    whole_x = Min (not_below, limit)

    wide = Gather <axis = -1> (whole_x, source)
    minus_low = Neg (low)
    wide_not_below = Max (wide, minus_low)
    earlier = Min (wide_not_below, low)
    rest = Sub (wide, earlier)
    levels = Constant <value_int: int = @levels> ()
    level = Cast <to = 1> (levels)
    minus_level = Neg (level)
    piece = Clip (rest, minus_level, level)

    repeated_order = Gather (order, source)
    repeated = Gather <axis = 0> (plane, repeated_order)
    is_signed = Cast <to = 9> (signed)
    padded_acc = If (is_signed) <
        then_branch = signed_product () => (signed_acc) {{
            signed_x = Cast <to = 3> (piece)
            signed_x_zero = Cast <to = 3> (zero)
            lowered = BitwiseXor (repeated, sign_bit)
            signed_weight = Cast <to = 3> (lowered)
            signed_zero = Cast <to = 3> (offset)
            signed_acc = MatMulInteger (signed_x, signed_weight, signed_x_zero, signed_zero)
        }},
        else_branch = unsigned_product () => (unsigned_acc) {{
            middle = Cast <to = 1> (sign_bit_int)
            positive_x = Add (piece, middle)
            unsigned_x = Cast <to = 2> (positive_x)
            unsigned_zero = Cast <to = 2> (zero_point_int)
            unsigned_acc = MatMulInteger (unsigned_x, repeated, sign_bit, unsigned_zero)
        }}>

    rows = Constant <value_int: int = @rows> ()
    rows_1 = Unsqueeze (rows, first_axis)
    padded_rows_1 = Shape <start = 1, end = 2> (plane)
    padded_rows = Squeeze (padded_rows_1, first_axis)
    is_whole = Equal (rows, padded_rows)
    acc = If (is_whole) <
        then_branch = whole () => (whole_acc) {{
            whole_acc = Identity (padded_acc)
        }},
        else_branch = cut () => (cut_acc) {{
            cut_acc = Slice (padded_acc, first_axis, rows_1, last)
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
