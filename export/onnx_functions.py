"""The bodies of flatlm's ONNX functions: what each call of docs/format.md means in standard operators.

onnxruntime inlines a body where the function is called and folds everything that depends on constants
alone, so an unpacked weight exists once, made at load. Only operators that have float32 kernels for CPU
and for CUDA are used. Attention is in onnx_attention.py.

The float functions are spelled out to the single rounding, following kernels_arm.reference: elementwise
in float32, sums in float64, and the exponential as the same polynomial. A library's Softmax or Sigmoid
would differ in the last bits, which is enough to move an activation over a rounding boundary, and one
integer that differs spreads through all layers after it: with them onnxruntime agreed with the native
kernels on 97 % of the tokens.

FlatLinear and FlatLinearToken have two products that give the same integers, and the constant `signed`
picks one; the other is gone once onnxruntime has loaded the model. uint8 · uint8 is the default: int8
activations have no fast x86 kernel (0.8 against 35 GMAC/s for one row on one core with VNNI), and uint8 ·
int8 saturates on AVX2. int8 · int8 is the only product CUDA has. The sums are multiplied by one scale after
the other: onnxruntime takes MatMulInteger, Cast and a product by the product of two scales for a
MatMulIntegerToFloat, whose activations have one scale, and results are wrong (1.32).

Legend: B batch, T tokens of a call, t keys, h heads, g key/value heads, d head size, P panels.
"""

from __future__ import annotations

from functools import cache

import onnx
import onnx.parser

from flatlm.export.onnx_attention import ATTENTION_BODIES
from flatlm.export.onnx_exp import exp, literal
from flatlm.kernels_arm.reference import FLOOR
from flatlm.runtime.format.functions import DOMAIN

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


# The product of the two FlatLinears: `whole_x`, integers in float32, as two int8 digits → `acc_float`.
# onnxruntime's product of no columns is not zero, so the first column's high digit takes part where it
# is 0 as well.
_PRODUCT = """
    one_digit = Constant <value_float = 127.0> ()
    is_wide = Greater (limit, one_digit)
    wide_float = Cast <to = 1> (is_wide)
    half = Constant <value_float = 64.0> ()
    raised_x = Add (whole_x, half)
    part_of_digit = Constant <value_float = 0.0078125> ()
    in_digits = Mul (raised_x, part_of_digit)
    whole_digits = Floor (in_digits)
    all_high = Mul (whole_digits, wide_float)
    digit = Constant <value_float = 128.0> ()
    taken = Mul (all_high, digit)
    low_x = Sub (whole_x, taken)
    columns = Shape (limit)
    columns_0 = Squeeze (columns, first_axis)
    column_numbers = Range (zero, columns_0, one)
    is_first = Equal (column_numbers, zero)
    takes_part = Or (is_wide, is_first)
    wide_1 = NonZero (takes_part)
    wide = Squeeze (wide_1, first_axis)
    high_x = Gather <axis = -1> (all_high, wide)

    own_order = Slice (order, first_axis, columns)
    low_weight = Gather <axis = 0> (plane, own_order)
    wide_size = Shape (wide)
    all_wide_1 = Equal (wide_size, columns)
    all_wide = Squeeze (all_wide_1, first_axis)
    high_weight = If (all_wide) <
        then_branch = every_column () => (same_weight) {
            same_weight = Identity (low_weight)
        },
        else_branch = wide_columns () => (wide_weight) {
            wide_order = Gather (order, wide)
            wide_weight = Gather <axis = 0> (plane, wide_order)
        }>
    is_signed = Cast <to = 9> (signed)
    low_acc, high_acc = If (is_signed) <
        then_branch = signed_product () => (signed_low, signed_high) {
            signed_x_zero = Cast <to = 3> (zero)
            signed_zero = Cast <to = 3> (offset)
            signed_low_x = Cast <to = 3> (low_x)
            lowered = BitwiseXor (low_weight, sign_bit)
            signed_low_weight = Cast <to = 3> (lowered)
            signed_low = MatMulInteger (signed_low_x, signed_low_weight, signed_x_zero, signed_zero)
            signed_high_x = Cast <to = 3> (high_x)
            lowered_high = BitwiseXor (high_weight, sign_bit)
            signed_high_weight = Cast <to = 3> (lowered_high)
            signed_high = MatMulInteger (signed_high_x, signed_high_weight, signed_x_zero, signed_zero)
        },
        else_branch = unsigned_product () => (unsigned_low, unsigned_high) {
            unsigned_zero = Cast <to = 2> (zero_point_int)
            positive_low = Add (low_x, digit)
            unsigned_low_x = Cast <to = 2> (positive_low)
            unsigned_low = MatMulInteger (unsigned_low_x, low_weight, sign_bit, unsigned_zero)
            positive_high = Add (high_x, digit)
            unsigned_high_x = Cast <to = 2> (positive_high)
            unsigned_high = MatMulInteger (unsigned_high_x, high_weight, sign_bit, unsigned_zero)
        }>
    digit_int = Cast <to = 6> (digit)
    shifted_acc = Mul (high_acc, digit_int)
    padded_acc = Add (low_acc, shifted_acc)

    rows = Constant <value_int: int = @rows> ()
    rows_1 = Unsqueeze (rows, first_axis)
    padded_rows_1 = Shape <start = 1, end = 2> (plane)
    padded_rows = Squeeze (padded_rows_1, first_axis)
    is_whole = Equal (rows, padded_rows)
    acc = If (is_whole) <
        then_branch = whole () => (whole_acc) {
            whole_acc = Identity (padded_acc)
        },
        else_branch = cut () => (cut_acc) {
            cut_acc = Slice (padded_acc, first_axis, rows_1, last)
        }>
    acc_float = Cast <to = 1> (acc)"""

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
    (x, weight, scale, bias, inverse_scale, limit, excess_delta, excess_value, signed) => (y) {{
{_UNPACK}
    steps = Mul (x, inverse_scale)
    rounded = Round (steps)
    lowest = Neg (limit)
    not_below = Max (rounded, lowest)
    whole_x = Min (not_below, limit)
{_PRODUCT}
    scaled = Mul (acc_float, scale)
    y = Add (scaled, bias)
}}""",
    "FlatLinearToken": f"""<rows, columns, offset, levels>
    (x, weight, scale, bias, limit, excess_delta, excess_value, signed) => (y) {{
{_UNPACK}
    levels_int = Constant <value_int: int = @levels> ()
    most = Cast <to = 1> (levels_int)
    share = Div (most, limit)
    size = Abs (x)
    reach = Mul (size, share)
    reached = ReduceMax <keepdims = 1> (reach, last)
    least = Constant <value_float = {literal(float(FLOOR))}> ()
    largest = Max (reached, least)
    inverse_step = Div (most, largest)
    step = Div (largest, most)
    steps = Mul (x, inverse_step)
    whole_x = Round (steps)
{_PRODUCT}
    by_row = Mul (acc_float, scale)
    scaled = Mul (by_row, step)
    y = Add (scaled, bias)
}}""",
    **ATTENTION_BODIES,
    "SwiGLU": f"""(gate_up) => (y) {{
    gate, up = Split <axis = -1, num_outputs = 2> (gate_up)
    minus_gate = Neg (gate)
{exp("minus_gate", "decay")}
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
