"""GroupedNorm: the norm of each group of columns, with a weight for each column of the row."""

from __future__ import annotations

import numpy as np

from flatlm.runtime.format.graph import Graph, Node

from . import norm
from .function import Env, Function, Operation

NAME = "GroupedNorm"


def operation(graph: Graph, node: Node) -> Operation:
    weight, epsilon = graph.array(node.inputs[1]), np.float32(node.attrs["epsilon"])
    size = int(node.attrs["size"])

    def grouped(x: np.ndarray) -> tuple[np.ndarray, ...]:
        groups = x.reshape(*x.shape[:-1], -1, size)
        mean = np.einsum("...k,...k->...", groups, groups)[..., None] / np.float32(size)
        return ((groups * (1 / np.sqrt(mean + epsilon))).reshape(x.shape) * weight,)

    return grouped


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    size, weight = int(node.attrs["size"]), graph.array(node.inputs[1])
    x = env[node.inputs[0]]
    groups, towards = (z.reshape(*z.shape[:-1], -1, size) for z in (x, y * weight))
    r = 1 / np.sqrt(np.mean(groups * groups, -1, keepdims=True) + np.float32(node.attrs["epsilon"]))
    found = r * (towards - groups * (r**2 * np.mean(towards * groups, -1, keepdims=True)))
    return (found.reshape(y.shape),)


def body(node: Node) -> str:
    size = int(node.attrs["size"])
    return f"""<size, epsilon> (x, weight) => (y) {{
    last = Constant <value_ints = [-1]> ()
    group_shape = Constant <value_ints = [0, 0, -1, {size}]> ()
    groups = Reshape (x, group_shape)
    x_double = Cast <to = 11> (groups)
    squares = Mul (x_double, x_double)
    total = ReduceSum <keepdims = 1> (squares, last)
    count_float = Constant <value_float = {size}.0> ()
    count = Cast <to = 11> (count_float)
    mean = Div (total, count)
    epsilon_float = Constant <value_float: float = @epsilon> ()
    epsilon_double = Cast <to = 11> (epsilon_float)
    shifted = Add (mean, epsilon_double)
    root = Sqrt (shifted)
    one_float = Constant <value_float = 1.0> ()
    one = Cast <to = 11> (one_float)
    inverse_double = Div (one, root)
    inverse = Cast <to = 1> (inverse_double)
    scaled_groups = Mul (groups, inverse)
    row_shape = Shape (x)
    scaled = Reshape (scaled_groups, row_shape)
    y = Mul (scaled, weight)
}}"""


GROUPED_NORM = Function(
    NAME, operation, backward, body, parameters=norm.parameters, scale=norm.scale, wide=norm.NORM.wide
)
