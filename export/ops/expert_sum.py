"""ExpertSum: for each token the sum of its experts' rows, each times its share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flatlm.runtime.format.graph import Graph, Node

from .function import Channels, Env, Function, Operation

_BODY = """(x, choice, shares) => (y) {
    second_last = Constant <value_ints = [-2]> ()
    last = Constant <value_ints = [-1]> ()
    share_column = Unsqueeze (shares, last)
    x_double = Cast <to = 11> (x)
    shares_double = Cast <to = 11> (share_column)
    weighted = Mul (x_double, shares_double)
    total = ReduceSum <keepdims = 0> (weighted, second_last)
    y = Cast <to = 1> (total)
}"""


def operation(graph: Graph, node: Node) -> Operation:
    return lambda x, choice, shares: (np.einsum("btkn,btk->btn", x, shares),)


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    x, _, shares = (env[name] for name in node.inputs)
    return y[..., None, :] * shares[..., None], np.zeros(()), np.einsum("sbtn,btkn->sbtk", y, x)


def body(node: Node) -> str:
    return _BODY


def origin(graph: Graph, node: Node, channels: Channels) -> Channels:
    """It is linear in the experts' rows."""
    return replace(channels, value=node.inputs[0])


EXPERT_SUM = Function("ExpertSum", operation, backward, body, origin=origin)
