"""Experts: for each token the float products of its chosen experts, y[r] = x · W[e]ᵀ + b[e] of its r-th one.

Legend: B windows, T tokens of a window, E experts, K of them a token, n outputs, k inputs, S draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from flatlm.export.constants import shape_of
from flatlm.export.onnx_text.choices import by_expert, rows
from flatlm.runtime.format.graph import Graph, Node, Tensor

from .function import Env, Function, Operation

_BODY = f"""(x, weight, choice, bias) => (y) {{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    first_axis = Constant <value_ints = [0]> ()
    last = Constant <value_ints = [-1]> ()
    outputs_1 = Shape <start = 1> (bias)
    experts_1 = Shape <start = 0, end = 1> (bias)
    experts = Squeeze (experts_1, first_axis)
{rows()}
{
    by_expert('''
            own_x = Gather (flat_x, own_rows)
            own_weight = Gather (weight, expert)
            transposed = Transpose <perm = [1, 0]> (own_weight)
            product = MatMul (own_x, transposed)
            own_bias = Gather (bias, expert)
            of_expert = Add (product, own_bias)''')
}
}}"""


def read_by(x: np.ndarray, choice: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """x [B, T, k], or [B, T, K, k] of rows of their own: of each expert that is chosen its number, where in
    choice [B, T, K] it is, bool, and the rows of x that it reads."""
    for e in np.unique(choice):
        mine = choice == e
        yield int(e), mine, x[mine] if x.ndim == choice.ndim + 1 else x[np.nonzero(mine)[:-1]]


def operation(graph: Graph, node: Node) -> Operation:
    weight, bias = graph.array(node.inputs[1]), graph.array(node.inputs[3])

    def run(x: np.ndarray, choice: np.ndarray) -> tuple[np.ndarray, ...]:
        y = np.empty((*choice.shape, weight.shape[1]), np.float32)
        for e, mine, own in read_by(x, choice):
            y[mine] = own @ weight[e].T + bias[e]
        return (y,)

    return run


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of x, and none of weight or choice."""
    weight, (x, choice) = graph.array(node.inputs[1]), (env[node.inputs[i]] for i in (0, 2))
    found = np.empty((*y.shape[:-1], weight.shape[2]), np.float32)
    for e in np.unique(choice):
        mine = choice == e
        found[:, mine] = y[:, mine] @ weight[e]
    return (found if x.ndim == choice.ndim + 1 else found.sum(-2)), np.zeros(()), np.zeros(())


def body(node: Node) -> str:
    return _BODY


def parameters(graph: Graph, node: Node) -> int:
    experts, n, k = shape_of(graph, node.inputs[1])
    return experts * n * k


def scale(graph: Graph, node: Node, factor: np.ndarray) -> None:
    """factor: [n], or of each expert [E, n]."""
    weight, bias = node.inputs[1], node.inputs[3]
    graph.constants[weight] = Tensor.of((graph.array(weight) * factor[..., None]).astype(np.float32))
    graph.constants[bias] = Tensor.of((graph.array(bias) * factor).astype(np.float32))


EXPERTS = Function("Experts", operation, backward, body, matrix="experts", parameters=parameters, scale=scale)
