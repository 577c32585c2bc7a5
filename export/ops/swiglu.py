"""SwiGLU: silu(gate) · up, of one fused layer's two halves."""

from __future__ import annotations

import numpy as np

from flatlm.export.onnx_text.exp import exp
from flatlm.runtime.format.graph import Graph, Node

from .function import Channels, Env, Function, Operation

_BODY = f"""(gate_up) => (y) {{
    gate, up = Split <axis = -1, num_outputs = 2> (gate_up)
    minus_gate = Neg (gate)
{exp("minus_gate", "decay")}
    denominator = Add (exp_one, decay)
    silu = Div (gate, denominator)
    y = Mul (silu, up)
}}"""


def operation(graph: Graph, node: Node) -> Operation:
    def swiglu(gate_up: np.ndarray) -> tuple[np.ndarray, ...]:
        gate, up = np.split(gate_up, 2, axis=-1)
        with np.errstate(over="ignore"):  # e^-gate may be inf, and the gate is then 0, as it should be
            return (gate / (1 + np.exp(-gate)) * up,)

    return swiglu


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    gate, up = np.split(env[node.inputs[0]], 2, axis=-1)
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-gate))
    return (np.concatenate([y * (up * sigmoid * (1 + gate * (1 - sigmoid))), y * (gate * sigmoid)], -1),)


def body(node: Node) -> str:
    return _BODY


def origin(node: Node, channels: Channels) -> Channels:
    """It is linear in up, the second half."""
    return Channels(node.inputs[0], channels.width + channels.index, 2 * channels.width)


def rows(node: Node, channel: np.ndarray, width: int) -> np.ndarray:
    return np.concatenate([channel, channel + width])


def parts(node: Node, count: int) -> list[slice]:
    return [slice(0, count // 2), slice(count // 2, count)]


SWIGLU = Function("SwiGLU", operation, backward, body, origin=origin, rows=rows, parts=parts, wide=2.5)
