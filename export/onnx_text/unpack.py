"""A packed weight in ONNX nodes: the kernels' order, excess included, becomes one plane of integers.

onnxruntime folds all of it, since it depends on constants alone: an unpacked weight exists once, made at
load.
"""

from __future__ import annotations

# Packed weight → `plane` [k padded, n padded], uint8, each element its integer + offset + 128. Its rows are
# the columns of the weight in the order (step, lane j, half e), because that needs two cheap moves of one
# axis; `order[c]` is the plane's row of column c. What is folded stays until onnxruntime has folded the
# whole model, so every step here costs a byte per weight of memory at load.
UNPACK = """
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
