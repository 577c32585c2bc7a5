"""Linear: a float layer, y = x · Wᵀ + b."""

from __future__ import annotations

import numpy as np

from flatlm.export.constants import shape_of
from flatlm.runtime.format.graph import Graph, Node, Tensor

from .function import Env, Function, Operation

_BODY = """(x, weight, bias) => (y) {
    transposed = Transpose <perm = [1, 0]> (weight)
    product = MatMul (x, transposed)
    y = Add (product, bias)
}"""


def operation(graph: Graph, node: Node) -> Operation:
    weight, bias = (graph.array(name) for name in node.inputs[1:3])
    weight = np.ascontiguousarray(weight, np.float32)
    return lambda x: (x @ weight.T + bias,)


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    weight = graph.array(node.inputs[1])
    return ((y.reshape(-1, y.shape[-1]) @ weight).reshape(*y.shape[:-1], -1),)


def body(node: Node) -> str:
    return _BODY


def parameters(graph: Graph, node: Node) -> int:
    rows, columns = shape_of(graph, node.inputs[1])
    return rows * columns


def scale(graph: Graph, node: Node, factor: np.ndarray) -> None:
    weight, bias = node.inputs[1:3]
    graph.constants[weight] = Tensor.of((graph.array(weight) * factor[:, None]).astype(np.float32))
    graph.constants[bias] = Tensor.of((graph.array(bias) * factor).astype(np.float32))


LINEAR = Function("Linear", operation, backward, body, matrix="linear", parameters=parameters, scale=scale)
