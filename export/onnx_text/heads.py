"""The heads of a fused q, k, v in ONNX nodes, q and k rotated.

Legend: B batch, T tokens of a call, h heads, g key/value heads, d head size.
"""

from __future__ import annotations

# qkv [B, T, (h + 2g)·d] → q [B, h, T, d] and k [B, g, T, d], both rotated, and v
ROTATED = """
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
