"""The causal mask in ONNX nodes. T tokens of a call, t keys, those of the past included."""

from __future__ import annotations

# q [B, h, T, d], present_key [B, g, t, d] → mask [T, t]: 0 where a query sees a key, else −∞
MASK = """
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
