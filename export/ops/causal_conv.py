"""CausalConv: each channel is the weighted sum of its last values. At export there is no past.

Legend: B batch, T tokens of a call, c channels, S draws.
"""

from __future__ import annotations

import numpy as np

from flatlm.export.constants import shape_of
from flatlm.export.onnx_text.exp import exp
from flatlm.runtime.format.graph import Graph, Node

from .function import Env, Function, Operation

NAME = "CausalConv"

_SILU = f"""
    minus = Neg (summed)
{exp("minus", "decay")}
    denominator = Add (exp_one, decay)
    y = Div (summed, denominator)"""


def _summed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Before an activation; x [B, T, c]."""
    total = np.broadcast_to(bias, x.shape).astype(x.dtype)
    for back, tap in enumerate(weight.T[::-1][: x.shape[1]]):
        total[:, back:] += x[:, : x.shape[1] - back] * tap
    return total


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        share: np.ndarray = 1 / (1 + np.exp(-x))
    return share


def operation(graph: Graph, node: Node) -> Operation:
    weight, bias = (graph.array(name) for name in node.inputs[1:3])

    def conv(x: np.ndarray) -> tuple[np.ndarray, ...]:
        y = _summed(x, weight, bias)
        return (y * _sigmoid(y) if "act" in node.attrs else y,)

    return conv


def backward(
    graph: Graph, node: Node, env: Env, y: np.ndarray, *present: np.ndarray
) -> tuple[np.ndarray, ...]:
    weight, bias = (graph.array(name) for name in node.inputs[1:3])
    if "act" in node.attrs:
        summed = _summed(env[node.inputs[0]], weight, bias)
        share = _sigmoid(summed)
        y = y * (share * (1 + summed * (1 - share)))
    found = np.zeros(y.shape, y.dtype)
    length = y.shape[2]
    for back, tap in enumerate(weight.T[::-1][:length]):
        found[:, :, : length - back] += y[:, :, back:] * tap
    return (found,)


def body(node: Node) -> str:
    taps, act = int(node.attrs["taps"]), "act" in node.attrs
    attributes = ["channels", "taps", *(["act"] if act else [])]
    lines = []
    for i in range(taps):
        lines += [
            f"first_{i} = Constant <value_ints = [{i}]> ()",
            f"end_{i} = Add (T_1, first_{i})",
            f"shifted_{i} = Slice (rows, first_{i}, end_{i}, token_axis)",
            f"weighted_{i} = Mul (shifted_{i}, tap_{i})",
            f"total_{i} = Add (total_{i - 1}, weighted_{i})" if i else "total_0 = Identity (weighted_0)",
        ]
    weights = ", ".join(f"column_{i}" for i in range(taps))
    split = [f"tap_{i} = Squeeze (column_{i}, token_axis)" for i in range(taps)]
    steps = "\n".join(f"    {line}" for line in [*split, *lines])
    return f"""<{", ".join(attributes)}> (x, weight, bias, past_conv) => (y, present_conv) {{
    token_axis = Constant <value_ints = [1]> ()
    T_1 = Shape <start = 1, end = 2> (x)
    past = Transpose <perm = [0, 2, 1]> (past_conv)
    rows = Concat <axis = 1> (past, x)
    {weights} = Split <axis = 1, num_outputs = {taps}> (weight)
{steps}
    summed = Add (total_{taps - 1}, bias)
    {_SILU.strip() if act else "y = Identity (summed)"}
    kept = Constant <value_ints = [{taps - 1}]> ()
    rows_1 = Shape <start = 1, end = 2> (rows)
    first_kept = Sub (rows_1, kept)
    last_rows = Slice (rows, first_kept, rows_1, token_axis)
    present_conv = Transpose <perm = [0, 2, 1]> (last_rows)
}}"""


def parameters(graph: Graph, node: Node) -> int:
    channels, taps = shape_of(graph, node.inputs[1])
    return int(channels * taps)


CAUSAL_CONV = Function(NAME, operation, backward, body, parameters=parameters)
