"""Embedding: rows of a float matrix by token id or position, the original of FlatEmbedding."""

from __future__ import annotations

from collections.abc import Mapping

from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Constant, Signature, Traits
from flatlm.runtime.format.values import IDS, POSITIONS, Values, streams
from flatlm.runtime.ops.originals import lower, numpy
from flatlm.runtime.ops.packed import sizes

__all__ = ["NAME", "TRAITS", "check", "lower", "numpy", "signature", "values"]

NAME, TRAITS = "Embedding", Traits(embedding=True, original=True)
_SIGNATURE = Signature(
    {"ids": None, "weight": Constant("float32", ("V", "k"))}, ("y",), {"scale": Attr(float, default=1.0)}
)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    """The signature says it all."""


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    ids = POSITIONS if given[0] == POSITIONS else IDS
    return (ids,), streams(sizes(graph, node)[1])
