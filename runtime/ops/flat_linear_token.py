"""FlatLinearToken: a product of integers, each token's activations in a step of its own."""

from __future__ import annotations

from collections.abc import Mapping

from flatlm.kernels_arm import records
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Signature, Traits
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops import products
from flatlm.runtime.ops.function import Operation
from flatlm.runtime.ops.products import check, values

__all__ = ["NAME", "TRAITS", "check", "integers", "lower", "numpy", "signature", "values"]

NAME, TRAITS = "FlatLinearToken", Traits(product=True)
_SIGNATURE = Signature({"x": None, **products.WEIGHTS, **products.LIMIT_EXCESS}, ("y",), products.ATTRS)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def integers(graph: Graph, node: Node) -> records.Integers:
    return records.Integers(graph.array(node.inputs[products.LIMIT]), int(node.attrs["levels"]), None)


def numpy(graph: Graph, node: Node) -> Operation:
    return products.product(graph, node, None)


def lower(lowering: Lowering, group: Group) -> None:
    products.lower_product(lowering, group)
