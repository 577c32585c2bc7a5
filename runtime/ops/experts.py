"""Experts: for each token the products of its chosen experts, with float weights: FlatExperts' original."""

from __future__ import annotations

from collections.abc import Mapping

from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Constant, Signature, Traits
from flatlm.runtime.format.values import Values, are_of_experts, choice, expert_rows, kept_of, like
from flatlm.runtime.ops.originals import lower, numpy

__all__ = ["NAME", "TRAITS", "check", "lower", "numpy", "signature", "values"]

NAME, TRAITS = "Experts", Traits(original=True)
_SIGNATURE = Signature(
    {
        "x": None,
        "weight": Constant("float32", ("e", "n", "k")),
        "choice": None,
        "bias": Constant("float32", ("e", "n")),
    },
    ("y",),
)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    """The signature says it all."""


def of_experts(given: Values, experts: int, rows: int, columns: int) -> tuple[Values, Values]:
    """What such a product takes and makes: a row of a token may serve all of its experts."""
    kept = kept_of(given[1])
    x = like(given[0], columns)
    if are_of_experts(given[0]):
        x = (expert_rows(columns, kept),)
    return (*x, choice(experts, kept)), (expert_rows(rows, kept),)


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    return of_experts(given, *graph.constants[node.inputs[1]].shape)
