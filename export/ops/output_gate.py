"""OutputGate: a value times an activation of another, a column of which is for one of its own or several."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flatlm.runtime.format.graph import Graph, Node

from .acts import act_of
from .function import Channels, Env, Function, Operation


def operation(graph: Graph, node: Node) -> Operation:
    act = act_of(node).run

    def gated(x: np.ndarray, gate: np.ndarray) -> tuple[np.ndarray, ...]:
        return (x * np.repeat(act(gate), x.shape[-1] // gate.shape[-1], axis=-1),)

    return gated


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    x, gate = (env[name] for name in node.inputs)
    shared = x.shape[-1] // gate.shape[-1]
    by_gate, by_x = act_of(node).slopes(np.repeat(gate, shared, axis=-1), x)
    return y * by_x, (y * by_gate).reshape(*y.shape[:-1], -1, shared).sum(-1)


def body(node: Node) -> str:
    return f"""<act> (x, gate) => (y) {{
{act_of(node).nodes("gate", "active")}
    tokens_shape = Constant <value_ints = [0, 0]> ()
    infer = Constant <value_ints = [-1]> ()
    gates_1 = Shape <start = 2, end = 3> (gate)
    columns_shape = Shape (x)
    groups_shape = Concat <axis = 0> (tokens_shape, gates_1, infer)
    x_groups = Reshape (x, groups_shape)
    factors = Unsqueeze (active, infer)
    y_groups = Mul (x_groups, factors)
    y = Reshape (y_groups, columns_shape)
}}"""


def origin(graph: Graph, node: Node, channels: Channels) -> Channels:
    """It is linear in x."""
    return replace(channels, value=node.inputs[0])


OUTPUT_GATE = Function("OutputGate", operation, backward, body, origin=origin)
