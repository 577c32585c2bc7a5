"""Causal attention over a K/V cache in ONNX nodes, float32 and int8.

It is spelled out because onnxruntime's CPU and CUDA providers disagree on `Attention(is_causal)` when there
is a past (onnxruntime issue 29020), and to follow kernels_arm.reference to the single rounding. In int8, sums
of integers are exact in any order: of query times key below 2^24, in float32; of weights times values in
float64.

Legend: B batch, T tokens of a call, t keys, h heads, g key/value heads, d head size, b blocks of 256 keys.
"""

from __future__ import annotations

from collections.abc import Sequence

from flatlm.kernels_arm import reference

from .exp import exp
from .head_integers import CONSTANTS, floats, quantized
from .mask import mask
from .scores import with_options

_SIZES = """
    first_axis = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    keep_1 = Constant <value_ints = [0]> ()
    keep_2 = Constant <value_ints = [0, 0]> ()
    infer = Constant <value_ints = [-1]> ()
    h_1 = Shape <start = 1, end = 2> (q)
    g_1 = Shape <start = 1, end = 2> (present_key)
    d_1 = Shape <start = 3, end = 4> (q)
"""

_FLOAT = ("q", "present_key", "present_value")

_FLOAT_NODES = f"""
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
{exp("below", "weights")}
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
"""

_INT8 = ("q", "present_key", "present_key_scale", "present_value", "present_value_scale")

_INT8_NODES = f"""
{floats(*CONSTANTS)}
{quantized("q")}
    row_shape = Concat <axis = 0> (keep_1, g_1, infer, d_1)
    one_column = Concat <axis = 0> (keep_1, g_1, infer, one)
    rows = Reshape (q_integers, row_shape)
    factor = Constant <value_float: float = @scale> ()
    q_factor = Mul (q_scale, factor)
    row_factor = Reshape (q_factor, one_column)
    keys = Transpose <perm = [0, 1, 3, 2]> (present_key)
    keys_float = Cast <to = 1> (keys)
    products = MatMul (rows, keys_float)
    key_scales = Transpose <perm = [0, 1, 3, 2]> (present_key_scale)
    scaled = Mul (products, key_scales)
    row_scores = Mul (scaled, row_factor)
    scores_shape = Concat <axis = 0> (keep_1, h_1, T_1, t_1)
    scores = Reshape (row_scores, scores_shape)
    masked = Add (scores, mask)

    block = Constant <value_int = {reference.KV_BLOCK}> ()
    block_1 = Unsqueeze (block, first_axis)
    beyond = Sub (first_axis, t_1)
    fill_1 = Mod (beyond, block_1)
    last_axis = Constant <value_ints = [-1]> ()
    third_axis = Constant <value_ints = [2]> ()
    no_fill = Concat <axis = 0> (first_axis, fill_1)
    whole_scores = Pad (masked, no_fill, unseen, last_axis)
    rows_1 = Shape <start = 2, end = 3> (rows)
    blocks_shape = Concat <axis = 0> (keep_1, g_1, rows_1, infer, block_1)
    by_block = Reshape (whole_scores, blocks_shape)
    largest_seen = ReduceMax <keepdims = 1> (by_block, last_axis)
    maxima = Max (largest_seen, lowest)
    below = Sub (by_block, maxima)
{exp("below", "weights")}
    sum_integers = Mul (weights, sum_steps)
    sum_rounded = Round (sum_integers)
    sum_double = Cast <to = 11> (sum_rounded)
    sum_total = ReduceSum <keepdims = 1> (sum_double, last_axis)
    sum_float = Cast <to = 1> (sum_total)
    sums = Mul (sum_float, part_of_sum)

    whole_scales = Pad (present_value_scale, no_fill, seen, third_axis)
    scales_shape = Concat <axis = 0> (keep_1, g_1, one, infer, block_1)
    value_scales = Reshape (whole_scales, scales_shape)
    scaled_weights = Mul (weights, value_scales)
    largest_weight = ReduceMax <keepdims = 1> (scaled_weights, last_axis)
    weight_bound = Max (largest_weight, floor)
    weight_inverse = Div (weight_levels, weight_bound)
    weight_steps = Mul (scaled_weights, weight_inverse)
    weight_rounded = Round (weight_steps)
    weight_scale = Div (weight_bound, weight_levels)
    weight_double = Cast <to = 11> (weight_rounded)
    weight_blocks = Transpose <perm = [0, 1, 3, 2, 4]> (weight_double)
    values_float = Cast <to = 1> (present_value)
    whole_values = Pad (values_float, no_fill, seen, third_axis)
    values_shape = Concat <axis = 0> (keep_1, g_1, infer, block_1, d_1)
    value_blocks = Reshape (whole_values, values_shape)
    values_double = Cast <to = 11> (value_blocks)
    acc_blocks = MatMul (weight_blocks, values_double)
    acc = Transpose <perm = [0, 1, 3, 2, 4]> (acc_blocks)
    acc_float = Cast <to = 1> (acc)
    parts = Mul (acc_float, weight_scale)

    block_axis = Constant <value_ints = [3]> ()
    largest = ReduceMax <keepdims = 1> (maxima, block_axis)
    below_largest = Sub (maxima, largest)
{exp("below_largest", "shares", "_of_blocks")}
    shares_double = Cast <to = 11> (shares)
    sums_double = Cast <to = 11> (sums)
    shared_sums = Mul (shares_double, sums_double)
    total = ReduceSum <keepdims = 1> (shared_sums, block_axis)
    parts_double = Cast <to = 11> (parts)
    shared_parts = Mul (shares_double, parts_double)
    joined = ReduceSum <keepdims = 1> (shared_parts, block_axis)
    unscaled = Cast <to = 1> (joined)
    one_double = Cast <to = 11> (exp_one)
    inverse_double = Div (one_double, total)
    inverse = Cast <to = 1> (inverse_double)
    out_rows = Mul (unscaled, inverse)
    out_shape = Concat <axis = 0> (keep_1, h_1, T_1, d_1)
    out_heads = Reshape (out_rows, out_shape)
    out_tokens = Transpose <perm = [0, 2, 1, 3]> (out_heads)
    flat_shape = Concat <axis = 0> (keep_2, infer)
    y = Reshape (out_tokens, flat_shape)
"""


def body(int8: bool, options: Sequence[str] = (), by_head: Sequence[str] = (), allowed: str = "") -> str:
    """Of a node over a float32 or int8 cache that has these optional attributes, and these inputs of a number
    for each head; `allowed` as of `mask`.
    """
    inputs, nodes = (_INT8, _INT8_NODES) if int8 else (_FLOAT, _FLOAT_NODES)
    head = f"<{', '.join(('scale', 'state', *options))}> ({', '.join((*inputs, *by_head))}) => (y)"
    return f"{head} {{{_SIZES}{mask(allowed)}{with_options(nodes, options, int8)}}}"
