"""ClampedGate: a clamped gate of one fused layer's first half, times its second half, clamped, too.

No scale folds through it: what is clamped is not linear.
"""

from __future__ import annotations

import numpy as np

from flatlm.export.onnx_text.exp import exp, literal
from flatlm.kernels_arm import expert_reference
from flatlm.runtime.format.graph import Graph, Node

from .function import Env, Function, Operation
from .gated import parts


def _numbers(node: Node) -> tuple[np.float32, ...]:
    """−alpha, the limit of the gate, and the two of the other half."""
    return expert_reference.clamps(float(node.attrs["alpha"]), float(node.attrs["limit"]))


def operation(graph: Graph, node: Node) -> Operation:
    alpha, limit = float(node.attrs["alpha"]), float(node.attrs["limit"])
    return lambda gate_up: (expert_reference.clamped_gate(gate_up, alpha, limit),)


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    minus_alpha, limit, low, high = _numbers(node)
    gate, up = np.split(env[node.inputs[0]], 2, axis=-1)
    least, held = np.minimum(gate, limit), np.clip(up, low, high)
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(minus_alpha * least))
    by_gate = held * sigmoid * (1 - minus_alpha * least * (1 - sigmoid)) * (gate < limit)
    by_up = least * sigmoid * ((up > low) & (up < high))
    return (np.concatenate([y * by_gate, y * by_up], -1),)


def body(node: Node) -> str:
    minus_alpha, limit, low, high = (literal(float(number)) for number in _numbers(node))
    return f"""<alpha, limit> (gate_up) => (y) {{
    all_gate, all_up = Split <axis = -1, num_outputs = 2> (gate_up)
    most = Constant <value_float = {limit}> ()
    gate = Min (all_gate, most)
    lowest_up = Constant <value_float = {low}> ()
    highest_up = Constant <value_float = {high}> ()
    raised = Max (all_up, lowest_up)
    up = Min (raised, highest_up)
    minus_alpha = Constant <value_float = {minus_alpha}> ()
    exponent = Mul (gate, minus_alpha)
{exp("exponent", "decay")}
    denominator = Add (exp_one, decay)
    active = Div (gate, denominator)
    y = Mul (active, up)
}}"""


CLAMPED_GATE = Function("ClampedGate", operation, backward, body, parts=parts, wide=2.5)
