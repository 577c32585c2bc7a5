"""RotaryAttentionInt8: as RotaryAttention, over a K/V cache of int8 with a scale for each token and head.

Sums of integers are exact in any order: of query times key below 2^24, in float32; of weights times values in
float64.

Legend: B batch, T tokens of a call, t keys, h heads, g key/value heads, d head size, b blocks of 256 keys.
"""

from __future__ import annotations

import numpy as np

from flatlm.export.onnx_text.exp import exp
from flatlm.export.onnx_text.head_integers import FLOATS, quantized
from flatlm.export.onnx_text.heads import ROTATED
from flatlm.export.onnx_text.mask import MASK
from flatlm.kernels_arm import reference
from flatlm.runtime.format.functions import INT8_ATTENTION
from flatlm.runtime.format.graph import Graph, Node

from .function import Function, Operation
from .rotary_attention import attend

_BODY = f"""<num_heads, kv_num_heads, head_size, scale>
    (qkv, cos, sin, past_key, past_key_scale, past_value, past_value_scale)
    => (y, present_key, present_key_scale, present_value, present_value_scale) {{
{ROTATED}
{FLOATS}
{"".join(map(quantized, "qkv"))}
    k_int8 = Cast <to = 3> (k_integers)
    v_int8 = Cast <to = 3> (v_integers)
    present_key = Concat <axis = 2> (past_key, k_int8)
    present_value = Concat <axis = 2> (past_value, v_int8)
    present_key_scale = Concat <axis = 2> (past_key_scale, k_scale)
    present_value_scale = Concat <axis = 2> (past_value_scale, v_scale)
{MASK}
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
}}"""


def operation(graph: Graph, node: Node) -> Operation:
    return attend(node, _as_int8)


def _as_int8(x: np.ndarray) -> np.ndarray:
    integers, scale = reference.quantize_heads(x)
    return integers * scale[..., None]


def body(node: Node) -> str:
    return _BODY


ROTARY_ATTENTION_INT8 = Function(INT8_ATTENTION, operation, body=body)
