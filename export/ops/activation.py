"""Activation: a function of each element by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flatlm.kernels_arm.ops import ACT_NUMBERS
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.ops.activation import numbers

from .acts import ACTS, Act
from .function import Channels, Env, Function, Operation
from .xielu import xielu


def act_of(node: Node) -> Act:
    name = str(node.attrs["act"])
    return ACTS[name] if name in ACTS else xielu(*numbers(node))


def operation(graph: Graph, node: Node) -> Operation:
    act = act_of(node).run
    return lambda x: (act(x),)


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    return (y * act_of(node).slope(env[node.inputs[0]]),)


def body(node: Node) -> str:
    return f"""<{", ".join(("act", *ACT_NUMBERS.get(str(node.attrs["act"]), ())))}> (x) => (y) {{
{act_of(node).nodes("x", "y")}
}}"""


def origin(graph: Graph, node: Node, channels: Channels) -> Channels | None:
    """Of a power of positive numbers alone."""
    if not (power := act_of(node).power):
        return None
    return replace(channels, value=node.inputs[0], power=power * channels.power)


def rows(node: Node, channel: np.ndarray, width: int) -> np.ndarray:
    return channel


ACTIVATION = Function("Activation", operation, backward, body, origin=origin, rows=rows, wide=2.5)
