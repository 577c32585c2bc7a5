"""HeadNorm: the norm of each head of queries or keys, which is Norm over the columns of a head; or of all.

Legend: B windows, T tokens, n heads, d head size, S draws.
"""

from __future__ import annotations

import numpy as np

from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.ops.head_norm import ALL, HEAD, scope
from flatlm.runtime.ops.norm import is_centered

from . import norm
from .function import Env, Function, Operation

_WEIGHTED = """
    infer = Constant <value_ints = [-1]> ()
    by_head = Constant <value_ints = [1]> ()
    heads_1 = Shape <start = 1, end = 2> (x)
    size_1 = Shape <start = 3, end = 4> (x)
    weight_shape = Concat <axis = 0> (heads_1, by_head, size_1)
    weights = Reshape (weight, weight_shape)
    y = Mul (scaled, weights)
}"""

# All heads of a token as one row
_JOINED = """
    tokens_first = Transpose <perm = [0, 2, 1, 3]> (x)
    row_shape = Constant <value_ints = [0, 0, -1]> ()
    rows = Reshape (tokens_first, row_shape)"""

_PARTED = """
    weighted = Mul (scaled, weight)
    kept = Constant <value_ints = [0, 0]> ()
    heads_size = Shape <start = 2, end = 4> (tokens_first)
    heads_shape = Concat <axis = 0> (kept, heads_size)
    parted = Reshape (weighted, heads_shape)
    y = Transpose <perm = [0, 2, 1, 3]> (parted)
}"""


def _rows(x: np.ndarray) -> np.ndarray:
    """[..., n, T, d] → [..., T, n·d]."""
    tokens = x.swapaxes(-2, -3)
    return tokens.reshape(*tokens.shape[:-2], -1)


def _heads(rows: np.ndarray, size: int) -> np.ndarray:
    """The other way."""
    return rows.reshape(*rows.shape[:-1], -1, size).swapaxes(-2, -3)


def operation(graph: Graph, node: Node) -> Operation:
    weight, epsilon, of = graph.array(node.inputs[1]), np.float32(node.attrs["epsilon"]), scope(node)
    centered = is_centered(node)

    def head_norm(x: np.ndarray) -> tuple[np.ndarray, ...]:
        if of == ALL:
            return (_heads(norm.normed(_rows(x), epsilon, centered) * weight, x.shape[-1]),)
        own = weight if of == HEAD else weight.reshape(-1, 1, x.shape[-1])
        return (norm.normed(x, epsilon, centered) * own,)

    return head_norm


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    x, weight = env[node.inputs[0]], graph.array(node.inputs[1])
    if scope(node) == ALL:
        return (_heads(norm.slope(node, _rows(x), _rows(y) * weight), x.shape[-1]),)
    own = weight if scope(node) == HEAD else weight.reshape(-1, 1, x.shape[-1])
    return (norm.slope(node, x, y * own),)


def body(node: Node) -> str:
    if scope(node) == HEAD:
        return norm.body(node)
    head = f"{norm.attributes(node, 'scope')} (x, weight) => (y) {{"
    if scope(node) == ALL:
        return head + _JOINED + norm.scaled(node, "rows") + _PARTED
    return head + norm.scaled(node, counted="x") + _WEIGHTED


HEAD_NORM = Function("HeadNorm", operation, backward, body, parameters=norm.parameters)
