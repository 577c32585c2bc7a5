"""HeadNorm: the norm of each head of queries or keys, which is Norm over the columns of a head."""

from __future__ import annotations

from flatlm.runtime.format.graph import Graph, Node

from . import norm
from .function import Function, Operation


def operation(graph: Graph, node: Node) -> Operation:
    return norm.operation(graph, node)


HEAD_NORM = Function("HeadNorm", operation, norm.backward, norm.body, parameters=norm.parameters)
