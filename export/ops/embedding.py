"""Embedding: rows of a float matrix by token id."""

from __future__ import annotations

import numpy as np

from flatlm.runtime.format.graph import Graph, Node

from .function import Function, Operation
from .linear import parameters

_BODY = """(ids, weight) => (y) {
    y = Gather (weight, ids)
}"""
_SCALED_BODY = """<scale> (ids, weight) => (y) {
    rows = Gather (weight, ids)
    factor = Constant <value_float: float = @scale> ()
    y = Mul (rows, factor)
}"""


def scale_of(node: Node) -> np.float32:
    """What rows are multiplied by, as the stream needs them: a head that shares the matrix is not."""
    return np.float32(node.attrs.get("scale", 1.0))


def operation(graph: Graph, node: Node) -> Operation:
    weight, scale = graph.array(node.inputs[1]), scale_of(node)
    return lambda ids: (weight[ids].astype(np.float32) * scale,)


def body(node: Node) -> str:
    return _SCALED_BODY if "scale" in node.attrs else _BODY


EMBEDDING = Function("Embedding", operation, body=body, matrix="table", parameters=parameters)
