"""Embedding: rows of a float matrix by token id."""

from __future__ import annotations

import numpy as np

from flatlm.runtime.format.graph import Graph, Node

from .function import Function, Operation
from .linear import parameters

_BODY = """(ids, weight) => (y) {
    y = Gather (weight, ids)
}"""


def operation(graph: Graph, node: Node) -> Operation:
    weight = graph.array(node.inputs[1])
    return lambda ids: (weight[ids].astype(np.float32),)


def body(node: Node) -> str:
    return _BODY


EMBEDDING = Function("Embedding", operation, body=body, matrix="table", parameters=parameters)
