"""Attention's options in ONNX nodes: softcap and slopes of its scores, sinks of its softmax.

Step for step `kernels_arm.reference.Scores`. Legend: h heads, g key/value heads, T tokens, t keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from .exp import exp

# slopes [h] → what is added to scores [B, h, T, t]
_DISTANCE = """
    heads_column = Constant <value_ints = [1, 2]> ()
    slopes_by_head = Unsqueeze (slopes, heads_column)
    away = Sub (key_position, query_column)
    away_float = Cast <to = 1> (away)
    distance_scores = Mul (slopes_by_head, away_float)"""

# sinks [h] → `sink_scores`, beside the largest scores of float32 [B, h, T, 1], of int8 [B, g, h/g · T, 1, 1]
_SINKS = """
    sink_axes = Constant <value_ints = [1, 2]> ()
    sink_scores = Unsqueeze (sinks, sink_axes)"""

_SINKS_INT8 = """
    sink_shape = Concat <axis = 0> (g_1, infer, one)
    sink_groups = Reshape (sinks, sink_shape)
    sink_tokens = Concat <axis = 0> (one, one, T_1)
    sink_repeated = Expand (sink_groups, sink_tokens)
    sink_rows_shape = Concat <axis = 0> (one, g_1, infer, one, one)
    sink_scores = Reshape (sink_repeated, sink_rows_shape)"""


def soft_cap(x: str, y: str, cap: str, tag: str = "") -> str:
    """The lines of a body for y = cap · tanh(x / cap), step for step `reference.soft_cap`."""
    return f"""
    two{tag} = Constant <value_float = 2.0> ()
    rate{tag} = Div (two{tag}, {cap})
    exponent{tag} = Mul ({x}, rate{tag})
{exp(f"exponent{tag}", f"growth{tag}", tag)}
    one_more{tag} = Add (growth{tag}, exp_one{tag})
    twice{tag} = Mul (two{tag}, {cap})
    missing{tag} = Div (twice{tag}, one_more{tag})
    {y} = Sub ({cap}, missing{tag})"""


def with_options(nodes: str, options: Collection[str], int8: bool) -> str:
    """The lines of attention with these options: `masked`, `largest` and `total` are made another way."""
    x = "scores"
    made = ""
    if "softcap" in options:
        made += "\n    cap = Constant <value_float: float = @softcap> ()"
        made += soft_cap(x, x := "capped_scores", "cap", "_of_cap")
    if "slopes" in options:
        made += _DISTANCE + f"\n    sloped_scores = Add ({x}, distance_scores)"
        x = "sloped_scores"
    nodes = nodes.replace("    masked = Add (scores, mask)", f"{made}\n    masked = Add ({x}, mask)")
    if "sinks" not in options:
        return nodes
    nodes = _again(nodes, "largest", lambda keys: f"""{_SINKS_INT8 if int8 else _SINKS}
    largest = Max ({keys}, sink_scores)""")  # fmt: skip
    return _again(nodes, "total", lambda keys: f"""
    below_sinks = Sub (sink_scores, largest)
{exp("below_sinks", "sink_weights", "_of_sinks")}
    sinks_double = Cast <to = 11> (sink_weights)
    total = Add ({keys}, sinks_double)""")  # fmt: skip


def _again(nodes: str, name: str, lines: Callable[[str], str]) -> str:
    """The line that makes `name` makes another value, of which `lines` make it."""
    keys = f"{name}_of_keys"
    return re.sub(rf"    {name} = (.*)", lambda line: f"    {keys} = {line[1]}{lines(keys)}", nodes)
