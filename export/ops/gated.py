"""Gated: an activation of one fused layer's first half, times its second half."""

from __future__ import annotations

import numpy as np

from flatlm.runtime.format.graph import Graph, Node

from .acts import act_of
from .function import Channels, Env, Function, Operation

NAME = "Gated"


def operation(graph: Graph, node: Node) -> Operation:
    act = act_of(node).run

    def gated(gate_up: np.ndarray) -> tuple[np.ndarray, ...]:
        gate, up = np.split(gate_up, 2, axis=-1)
        return (act(gate) * up,)

    return gated


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    slopes = act_of(node).slopes(*np.split(env[node.inputs[0]], 2, axis=-1))
    return (np.concatenate([y * slope for slope in slopes], -1),)


def body(node: Node) -> str:
    return f"""<act> (gate_up) => (y) {{
    gate, up = Split <axis = -1, num_outputs = 2> (gate_up)
{act_of(node).nodes("gate", "active")}
    y = Mul (active, up)
}}"""


def origin(graph: Graph, node: Node, channels: Channels) -> Channels:
    """It is linear in up, the second half."""
    return Channels(node.inputs[0], channels.width + channels.index, 2 * channels.width, channels.power)


def rows(node: Node, channel: np.ndarray, width: int) -> np.ndarray:
    return np.concatenate([channel, channel + width])


def parts(node: Node, count: int) -> list[slice]:
    return [slice(0, count // 2), slice(count // 2, count)]


GATED = Function(NAME, operation, backward, body, origin=origin, rows=rows, parts=parts, wide=2.5)
