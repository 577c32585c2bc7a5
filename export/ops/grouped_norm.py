"""GroupedNorm: the norm of each group of columns, with a weight for each column of the row."""

from __future__ import annotations

import numpy as np

from flatlm.runtime.format.graph import Graph, Node

from . import norm
from .function import Env, Function, Operation

NAME = "GroupedNorm"


def _groups(node: Node, x: np.ndarray) -> np.ndarray:
    """[..., k] → [..., groups, size]."""
    return x.reshape(*x.shape[:-1], -1, int(node.attrs["size"]))


def operation(graph: Graph, node: Node) -> Operation:
    weight, epsilon = graph.array(node.inputs[1]), np.float32(node.attrs["epsilon"])

    def grouped(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (norm.normed(_groups(node, x), epsilon, centered=False).reshape(x.shape) * weight,)

    return grouped


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    x, weight = env[node.inputs[0]], graph.array(node.inputs[1])
    return (norm.slope(node, _groups(node, x), _groups(node, y * weight)).reshape(y.shape),)


def body(node: Node) -> str:
    return f"""<size, epsilon> (x, weight) => (y) {{
    group_shape = Constant <value_ints = [0, 0, -1, {int(node.attrs["size"])}]> ()
    groups = Reshape (x, group_shape){norm.scaled(node, "groups", "groups")}
    row_shape = Shape (x)
    row = Reshape (scaled, row_shape)
    y = Mul (row, weight)
}}"""


GROUPED_NORM = Function(
    NAME, operation, backward, body, parameters=norm.parameters, scale=norm.scale, wide=norm.NORM.wide
)
