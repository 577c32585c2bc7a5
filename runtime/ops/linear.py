"""Linear: a product with float weights and a bias, the original of FlatLinear and FlatLinearToken."""

from __future__ import annotations

from collections.abc import Mapping

from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Constant, Signature, Traits
from flatlm.runtime.ops.originals import lower, numpy
from flatlm.runtime.ops.products import values

__all__ = ["NAME", "TRAITS", "check", "lower", "numpy", "signature", "values"]

NAME, TRAITS = "Linear", Traits(product=True, original=True)
_SIGNATURE = Signature(
    {"x": None, "weight": Constant("float32", ("n", "k")), "bias": Constant("float32", ("n",))}, ("y",)
)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    """The signature says it all."""
