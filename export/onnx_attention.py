"""The bodies of attention in standard operators, over a float32 and over an int8 K/V cache.

They are spelled out because onnxruntime's CPU and CUDA providers disagree on `Attention(is_causal)` when
there is a past (onnxruntime issue 29020), and to follow kernels_arm.reference to the single rounding. Sums
of integers are exact in any order: of query times key below 2^24, in float32; of weights times values in
float64.

Legend: B batch, T tokens of a call, t keys, h heads, g key/value heads, d head size, b blocks of 256 keys.
"""

from __future__ import annotations

from flatlm.export.onnx_exp import exp, literal
from flatlm.kernels_arm import reference

# qkv [B, T, (h + 2g)·d] → q [B, h, T, d] and k [B, g, T, d], both rotated, and v
_ROTATED = """
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
"""

# → mask [T, t]: 0 where a query sees a key, else −∞
_MASK = """
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
"""

_FLOAT32 = f"""<num_heads, kv_num_heads, head_size, scale>
    (qkv, cos, sin, past_key, past_value) => (y, present_key, present_value) {{
{_ROTATED}
    present_key = Concat <axis = 2> (past_key, k)
    present_value = Concat <axis = 2> (past_value, v)
{_MASK}
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
}}"""


def _quantized(x: str) -> str:
    """x [B, heads, T, d] → its integers, as float32, and scales [B, heads, T, 1], as quantize_heads."""
    return f"""
    {x}_sizes = Abs ({x})
    {x}_largest = ReduceMax <keepdims = 1> ({x}_sizes, infer)
    {x}_bound = Max ({x}_largest, floor)
    {x}_inverse = Div (head_levels, {x}_bound)
    {x}_steps = Mul ({x}, {x}_inverse)
    {x}_integers = Round ({x}_steps)
    {x}_scale = Div ({x}_bound, head_levels)
"""


_CONSTANTS = {
    "floor": reference.FLOOR,
    "lowest": reference.LOWEST,
    "head_levels": reference.HEAD_LEVELS,
    "weight_levels": reference.WEIGHT_LEVELS,
    "sum_steps": reference.SUM_STEPS,
    "part_of_sum": reference.PART_OF_SUM,
}
_FLOATS = "\n".join(
    f"    {name} = Constant <value_float = {literal(float(value))}> ()" for name, value in _CONSTANTS.items()
)

_INT8 = f"""<num_heads, kv_num_heads, head_size, scale>
    (qkv, cos, sin, past_key, past_key_scale, past_value, past_value_scale)
    => (y, present_key, present_key_scale, present_value, present_value_scale) {{
{_ROTATED}
{_FLOATS}
{"".join(map(_quantized, "qkv"))}
    k_int8 = Cast <to = 3> (k_integers)
    v_int8 = Cast <to = 3> (v_integers)
    present_key = Concat <axis = 2> (past_key, k_int8)
    present_value = Concat <axis = 2> (past_value, v_int8)
    present_key_scale = Concat <axis = 2> (past_key_scale, k_scale)
    present_value_scale = Concat <axis = 2> (past_value_scale, v_scale)
{_MASK}
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

ATTENTION_BODIES = {"RotaryAttention": _FLOAT32, "RotaryAttentionInt8": _INT8}
