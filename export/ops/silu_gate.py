"""SiluGate: a stream times silu of another, its gate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flatlm.export.onnx_text.exp import exp
from flatlm.runtime.format.graph import Graph, Node

from .function import Channels, Env, Function, Operation

NAME = "SiluGate"

_BODY = f"""(x, gate) => (y) {{
    minus_gate = Neg (gate)
{exp("minus_gate", "decay")}
    denominator = Add (exp_one, decay)
    active = Div (gate, denominator)
    y = Mul (x, active)
}}"""


def _sigmoid(gate: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # e^-gate may be inf, and the gate is then 0, as it should be
        share: np.ndarray = 1 / (1 + np.exp(-gate))
    return share


def operation(graph: Graph, node: Node) -> Operation:
    return lambda x, gate: (x * (gate * _sigmoid(gate)),)


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    x, gate = (env[name] for name in node.inputs)
    share = _sigmoid(gate)
    return y * (gate * share), y * (x * (share * (1 + gate * (1 - share))))


def body(node: Node) -> str:
    return _BODY


def origin(graph: Graph, node: Node, channels: Channels) -> Channels:
    return replace(channels, value=node.inputs[0])


SILU_GATE = Function(NAME, operation, backward, body, origin=origin)
