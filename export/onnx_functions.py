"""The bodies of flatlm's ONNX functions: what each call of docs/format.md means in standard operators.

onnxruntime inlines a body where the function is called and folds everything that depends on constants
alone, so an unpacked weight exists once, made at load. Only operators that have float32 kernels for CPU
and for CUDA are used. Attention is spelled out because the two disagree on `Attention(is_causal)` when
there is a past (onnxruntime issue 29020).

The float functions are spelled out to the single rounding, following kernels_arm.reference: elementwise
in float32, sums in float64, and the exponential as the same polynomial. A library's Softmax or Sigmoid
would differ in the last bits, which is enough to move an activation over a rounding boundary, and one
integer that differs spreads through all layers after it: with them onnxruntime agreed with the native
kernels on 97 % of the tokens.

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

from kernels_arm import reference

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


def _exp(x: str, y: str) -> str:
    """y = e^x, step for step `kernels_arm.reference.exp`; 2^n comes from a table, exact on any device."""
    values = {
        "lowest_x": reference.EXP_LOW,
        "highest_x": reference.EXP_HIGH,
        "log2e": reference.LOG2E,
        "ln2_high": reference.LN2_HIGH,
        "ln2_low": reference.LN2_LOW,
        **{f"c{i}": c for i, c in enumerate(reference.EXP_POLYNOMIAL)},
    }
    lines = [
        f"{name} = Constant <value_float = {_literal(float(value))}> ()" for name, value in values.items()
    ]
    powers = ", ".join(_literal(2.0**n) for n in range(-126, 128))
    lines += [
        f"at_least = Max ({x}, lowest_x)",
        "within = Min (at_least, highest_x)",
        "in_log2 = Mul (within, log2e)",
        "n = Round (in_log2)",
        "n_high = Mul (n, ln2_high)",
        "r_high = Sub (within, n_high)",
        "n_low = Mul (n, ln2_low)",
        "r = Sub (r_high, n_low)",
        *(line for i in range(1, 6) for line in _polynomial_step(i)),
        "r_squared = Mul (r, r)",
        "p_scaled = Mul (p5, r_squared)",
        "p_and_r = Add (p_scaled, r)",
        "exp_one = Constant <value_float = 1.0> ()",
        "fraction = Add (p_and_r, exp_one)",
        f"powers_of_two = Constant <value_floats = [{powers}]> ()",
        "n_int = Cast <to = 7> (n)",
        "exp_first = Constant <value_int = 126> ()",
        "power_index = Add (n_int, exp_first)",
        "power = Gather (powers_of_two, power_index)",
        "exponential = Mul (fraction, power)",
        f"vanishes = Less ({x}, lowest_x)",
        "exp_zero = Constant <value_float = 0.0> ()",
        f"{y} = Where (vanishes, exp_zero, exponential)",
    ]
    return "\n".join("    " + line for line in lines)


def _literal(value: float) -> str:
    """A float32 as text that reads back exactly and as a float."""
    text = f"{value:.9g}"
    return text if "." in text or "e" in text else text + ".0"


def _polynomial_step(i: int) -> tuple[str, str]:
    before = "c0" if i == 1 else f"p{i - 1}"
    return f"m{i} = Mul ({before}, r)", f"p{i} = Add (m{i}, c{i})"


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
    last = Constant <value_ints = [-1]> ()
    x_double = Cast <to = 11> (x)
    squares = Mul (x_double, x_double)
    total = ReduceSum <keepdims = 1> (squares, last)
    size = Shape <start = -1> (x)
    count = Cast <to = 11> (size)
    mean = Div (total, count)
    epsilon_float = Constant <value_float: float = @epsilon> ()
    epsilon_double = Cast <to = 11> (epsilon_float)
    shifted = Add (mean, epsilon_double)
    root = Sqrt (shifted)
    one_float = Constant <value_float = 1.0> ()
    one = Cast <to = 11> (one_float)
    inverse_double = Div (one, root)
    inverse = Cast <to = 1> (inverse_double)
    scaled = Mul (x, inverse)
    y = Mul (scaled, weight)
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
    "RotaryAttention": f"""<num_heads, kv_num_heads, head_size, scale>
    (qkv, cos, sin, past_key, past_value) => (y, present_key, present_value) {{
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
    cos_heads = Unsqueeze (cos, one)
    sin_heads = Unsqueeze (sin, one)
    first_half, second_half = Split <axis = -1, num_outputs = 2> (qk)
    first_cos = Mul (first_half, cos_heads)
    second_sin = Mul (second_half, sin_heads)
    first_turned = Sub (first_cos, second_sin)
    second_cos = Mul (second_half, cos_heads)
    first_sin = Mul (first_half, sin_heads)
    second_turned = Add (second_cos, first_sin)
    rotated = Concat <axis = -1> (first_turned, second_turned)
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
    q_double = Cast <to = 11> (grouped_q)
    keys_double = Cast <to = 11> (keys)
    products_double = MatMul (q_double, keys_double)
    products = Cast <to = 1> (products_double)
    factor = Constant <value_float: float = @scale> ()
    grouped_scores = Mul (products, factor)
    grouped_shape = Shape (grouped_scores)
    scores_shape = Concat <axis = 0> (keep_1, h_1, T_1, t_1)
    scores = Reshape (grouped_scores, scores_shape)
    masked = Add (scores, mask)
    largest = ReduceMax <keepdims = 1> (masked, infer)
    below = Sub (masked, largest)
{_exp("below", "weights")}
    weights_double = Cast <to = 11> (weights)
    total = ReduceSum <keepdims = 1> (weights_double, infer)
    one_double = Cast <to = 11> (exp_one)
    inverse_double = Div (one_double, total)
    inverse = Cast <to = 1> (inverse_double)
    grouped_weights = Reshape (weights_double, grouped_shape)
    values_double = Cast <to = 11> (present_value)
    grouped_double = MatMul (grouped_weights, values_double)
    grouped_out = Cast <to = 1> (grouped_double)
    out_shape = Concat <axis = 0> (keep_1, h_1, T_1, d_1)
    unscaled = Reshape (grouped_out, out_shape)
    out_heads = Mul (unscaled, inverse)
    out_tokens = Transpose <perm = [0, 2, 1, 3]> (out_heads)
    flat_shape = Concat <axis = 0> (keep_2, infer)
    y = Reshape (out_tokens, flat_shape)
}}""",
    "SwiGLU": f"""(gate_up) => (y) {{
    gate, up = Split <axis = -1, num_outputs = 2> (gate_up)
    minus_gate = Neg (gate)
{_exp("minus_gate", "decay")}
    denominator = Add (exp_one, decay)
    silu = Div (gate, denominator)
    y = Mul (silu, up)
}}""",
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
