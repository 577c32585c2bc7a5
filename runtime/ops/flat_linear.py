"""FlatLinear: a product of integers, the activations in one step that calibration chose."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import records
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Constant, Signature, Traits
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops import products
from flatlm.runtime.ops.function import Operation
from flatlm.runtime.ops.products import check, values

__all__ = ["NAME", "TRAITS", "check", "integers", "lower", "numpy", "signature", "values"]

NAME, TRAITS = "FlatLinear", Traits(product=True)
_INVERSE_SCALE = 4  # the input
_SIGNATURE = Signature(
    {"x": None, **products.WEIGHTS, "inverse_scale": Constant("float32"), **products.LIMIT_EXCESS},
    ("y",),
    products.ATTRS,
)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def _inverse_scale(graph: Graph, node: Node) -> np.floating:
    return np.float32(graph.array(node.inputs[_INVERSE_SCALE]).reshape(-1)[0])


def integers(graph: Graph, node: Node) -> records.Integers:
    limit = graph.array(node.inputs[products.LIMIT])
    return records.Integers(limit, int(node.attrs["levels"]), _inverse_scale(graph, node))


def numpy(graph: Graph, node: Node) -> Operation:
    return products.product(graph, node, _inverse_scale(graph, node))


def lower(lowering: Lowering, group: Group) -> None:
    products.lower_product(lowering, group)
