"""The product of FlatLinear and FlatLinearToken in ONNX nodes: integers of two int8 digits times a plane.

There are two products that give the same integers, and the constant `signed` picks one; the other is gone
once onnxruntime has loaded the model. uint8 · uint8 is the default: int8 activations have no fast x86 kernel
(0.8 against 35 GMAC/s for one row on one core with VNNI), and uint8 · int8 saturates on AVX2. int8 · int8 is
the only product CUDA has. What follows must multiply the sums by one scale after the other: onnxruntime takes
MatMulInteger, Cast and a product by the product of two scales for a MatMulIntegerToFloat, whose activations
have one scale, and results are wrong (1.32).
"""

from __future__ import annotations

# `whole_x`, integers in float32, as two int8 digits: `low_x`, and `high_x` of the columns `wide`.
# onnxruntime's product of no columns is not zero, so the first column's high digit takes part where it
# is 0 as well.
DIGITS = """
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
"""

# `plane` in the order of the columns, and its columns of two digits
_WEIGHTS = """
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
"""

# Either product of digits and weights → `low_acc`, `high_acc`
_EITHER = """    is_signed = Cast <to = 9> (signed)
    low_acc, high_acc = If (is_signed) <
        then_branch = signed_product () => (signed_low, signed_high) {{
            signed_x_zero = Cast <to = 3> (zero)
            signed_zero = Cast <to = 3> (offset)
            signed_low_x = Cast <to = 3> ({low})
            lowered = BitwiseXor (low_weight, sign_bit)
            signed_low_weight = Cast <to = 3> (lowered)
            signed_low = MatMulInteger (signed_low_x, signed_low_weight, signed_x_zero, signed_zero)
            signed_high_x = Cast <to = 3> ({high})
            lowered_high = BitwiseXor (high_weight, sign_bit)
            signed_high_weight = Cast <to = 3> (lowered_high)
            signed_high = MatMulInteger (signed_high_x, signed_high_weight, signed_x_zero, signed_zero)
        }},
        else_branch = unsigned_product () => (unsigned_low, unsigned_high) {{
            unsigned_zero = Cast <to = 2> (zero_point_int)
            positive_low = Add ({low}, digit)
            unsigned_low_x = Cast <to = 2> (positive_low)
            unsigned_low = MatMulInteger (unsigned_low_x, low_weight, sign_bit, unsigned_zero)
            positive_high = Add ({high}, digit)
            unsigned_high_x = Cast <to = 2> (positive_high)
            unsigned_high = MatMulInteger (unsigned_high_x, high_weight, sign_bit, unsigned_zero)
        }}>
"""

_SUMS = """    digit_int = Cast <to = 6> (digit)
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


def either(low: str, high: str) -> str:
    """Lines for the products of these digits with `low_weight` and `high_weight` → `low_acc`, `high_acc`."""
    return _EITHER.format(low=low, high=high)


# `whole_x` · `plane` → `acc_float`
PRODUCT = DIGITS + _WEIGHTS + either("low_x", "high_x") + _SUMS
