"""Products by chosen experts in ONNX nodes: a loop over the experts that are chosen at all.

Each turn takes the rows that go to one expert, multiplies them, and puts the results in their places. So a
long prompt costs each expert's rows once, and a token alone as many turns as it has experts.
"""

from __future__ import annotations

# x [..., k], choice [B, T, K] → the rows of x as a matrix, and for each choice the number of its row: its
# token's, or one of its own. Needs `first_axis`, `last`, `zero`, `one`.
_ROWS = """
    columns_1 = Shape <start = -1> (x)
    flat_shape = Concat <axis = 0> (last, columns_1)
    flat_x = Reshape (x, flat_shape)
    flat_choice = Reshape (choice, last)
    choice_count = Size (flat_choice)
    row_count_1 = Shape <start = 0, end = 1> (flat_x)
    row_count = Squeeze (row_count_1, first_axis)
    choices_a_row = Div (choice_count, row_count)
    choice_numbers = Range (zero, choice_count, one)
    row_of_choice = Div (choice_numbers, choices_a_row)
"""

# `experts` is their number, `outputs_1` [n]; `{product}` makes `of_expert` of `own_rows` and `expert`
_LOOP = """
    expert_numbers = Range (zero, experts, one)
    one_1 = Constant <value_ints = [1]> ()
    choice_column = Unsqueeze (flat_choice, one_1)
    goes_to = Equal (choice_column, expert_numbers)
    goes_to_int = Cast <to = 6> (goes_to)
    is_used = ReduceMax <keepdims = 0> (goes_to_int, first_axis)
    used_1 = NonZero (is_used)
    used = Squeeze (used_1, first_axis)
    turns = Size (used)
    always = Cast <to = 9> (one)
    choice_count_1 = Unsqueeze (choice_count, first_axis)
    all_shape = Concat <axis = 0> (choice_count_1, outputs_1)
    empty = ConstantOfShape (all_shape)
    y_rows = Loop (turns, always, empty) <
        body = one_expert (int64 turn, bool going, float[all, n] so_far)
            => (bool still_going, float[all, n] with_these) {{
            expert = Gather (used, turn)
            is_own = Gather <axis = 1> (goes_to, expert)
            own_1 = NonZero (is_own)
            own_choices = Squeeze (own_1, first_axis)
            own_rows = Gather (row_of_choice, own_choices)
{product}
            places = Transpose (own_1)
            with_these = ScatterND (so_far, places, of_expert)
            still_going = Identity (going)
        }}>
    choice_shape = Shape (choice)
    y_shape = Concat <axis = 0> (choice_shape, outputs_1)
    y = Reshape (y_rows, y_shape)"""


def rows() -> str:
    """x, choice → what `by_expert` takes."""
    return _ROWS


def by_expert(product: str) -> str:
    """→ y [B, T, K, n]. `product`: the lines for the rows of one expert."""
    return _LOOP.format(product=product)
