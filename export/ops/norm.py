"""Norm: x over its root mean square, times a weight for each channel."""

from __future__ import annotations

import numpy as np

from flatlm.export.constants import shape_of
from flatlm.runtime.format.graph import Graph, Node, Tensor

from .function import Env, Function, Operation

_BODY = """<epsilon> (x, weight) => (y) {
    last = Constant <value_ints = [-1]> ()
    x_double = Cast <to = 11> (x)
    squares = Mul (x_double, x_double)
    total = ReduceSum <keepdims = 1> (squares, last)
    size = Shape <start = -1> (weight)
    count = Cast <to = 11> (size)
    mean = Div (total, count)
    epsilon_float = Constant <value_float: float = @epsilon> ()
    epsilon_double = Cast <to = 11> (epsilon_float)
    shifted = Add (mean, epsilon_double)
    root = Sqrt (shifted)
    one_float = Constant <value_float = 1.0> ()
    one = Cast <to = 11> (one_float)
    inverse_double = Div (one, root)
    inverse = Cast <to = 1> (inverse_double)
    scaled = Mul (x, inverse)
    y = Mul (scaled, weight)
}"""


def operation(graph: Graph, node: Node) -> Operation:
    weight, epsilon = graph.array(node.inputs[1]), np.float32(node.attrs["epsilon"])

    def norm(x: np.ndarray) -> tuple[np.ndarray, ...]:
        mean = np.einsum("...k,...k->...", x, x)[..., None] / np.float32(x.shape[-1])
        return (x * (1 / np.sqrt(mean + epsilon)) * weight,)

    return norm


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    x, weight = env[node.inputs[0]], graph.array(node.inputs[1])
    r = 1 / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(node.attrs["epsilon"]))
    y = y * weight
    return (r * (y - x * (r**2 * np.mean(y * x, -1, keepdims=True))),)


def body(node: Node) -> str:
    return _BODY


def parameters(graph: Graph, node: Node) -> int:
    return int(shape_of(graph, node.inputs[1])[0])


def scale(graph: Graph, node: Node, factor: np.ndarray) -> None:
    name = node.inputs[1]
    graph.constants[name] = Tensor.of((graph.array(name) * factor).astype(np.float32))


NORM = Function("Norm", operation, backward, body, parameters=parameters, scale=scale, wide=0.5)
