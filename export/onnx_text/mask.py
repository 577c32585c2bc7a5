"""The mask of attention in ONNX nodes. T tokens of a call, t keys, those of the past included."""

from __future__ import annotations

_CAUSAL = """
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
    {causal} = LessOrEqual (key_position, query_column)
"""

_MASK = """
    seen = Constant <value_float = 0.0> ()
    unseen = Constant <value_float = -inf> ()
    mask = Where (visible, seen, unseen)
"""


def mask(allowed: str = "") -> str:
    """q [B, h, T, d], present_key [B, g, t, d] → mask [T, t]: 0 where a query sees a key, else −∞.

    A query sees no key after it and, of these, those for which `allowed` [T, t] holds: lines that make it of
    key_position [t] and query_column [T, 1].
    """
    if not allowed:
        return _CAUSAL.format(causal="visible") + _MASK
    both = "    visible = And (causal, allowed)\n"
    return _CAUSAL.format(causal="causal") + allowed + both + _MASK
