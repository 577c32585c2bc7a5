"""Mul: one stream gates another, a standard operator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flatlm.runtime.format.graph import Graph, Node

from .function import Channels, Env, Function, Operation


def operation(graph: Graph, node: Node) -> Operation:
    return lambda a, b: (a * b,)


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    a, b = (env[name] for name in node.inputs)
    return y * b, y * a


def origin(graph: Graph, node: Node, channels: Channels) -> Channels:
    """It is linear in each of the two: the first takes the scale."""
    return replace(channels, value=node.inputs[0])


MUL = Function("Mul", operation, backward, origin=origin)
