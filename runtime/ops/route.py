"""Route: which experts each token goes to, and their shares, from the logits of a router.

The result does not depend on other tokens, and of equal experts the one with the lower number comes first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import expert_reference, layout, ops
from flatlm.kernels_arm.expert_records import Choice, route_records
from flatlm.kernels_arm.layout import padded
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Constant, Signature, Traits, misfit
from flatlm.runtime.format.values import Values, choice, shares, streams
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = "Route", Traits()
_SELECT = {"select": Constant("float32", ("experts",))}
_ATTRS = {
    "kind": Attr(str, tuple(ops.KINDS)),
    "experts": Attr(int),
    "kept": Attr(int),
    "normalize": Attr(int, default=0),  # whether shares are divided by their sum, of "softmax" and "sigmoid"
    "scale": Attr(float, default=1.0),
    "floor": Attr(float, default=0.0),  # of the sum that they are divided by
    "groups": Attr(int, default=1),
    "keep": Attr(int, default=1),  # groups
    "selected": Attr(int, default=0),  # whether there is a `select`
}


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    inputs = {"logits": None, **(_SELECT if attrs.get("selected") else {})}
    return Signature(inputs, ("choice", "shares"), _ATTRS)


def options(graph: Graph, node: Node) -> Choice:
    """The attributes, with defaults, and `select`."""
    values = {name: node.attrs.get(name, attr.default) for name, attr in _ATTRS.items()}
    select = graph.array(node.inputs[1]) if values.pop("selected") else None
    values["normalize"] = bool(values["normalize"])
    return Choice(select=select, **values)  # type: ignore[arg-type]  # of the kinds that were checked


def check(graph: Graph, node: Node) -> None:
    one = options(graph, node)
    if one.experts % one.groups or one.keep > one.groups:
        raise misfit(node, f"{one.keep} of {one.groups} groups of {one.experts} experts do not divide")
    size = one.experts // one.groups
    if one.kept > one.keep * size or (one.groups > 1 and size < 2):
        raise misfit(node, f"{one.kept} experts of {one.keep} groups of {size}")


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    experts, kept = int(node.attrs["experts"]), int(node.attrs["kept"])
    return streams(experts), (choice(experts, kept), shares(kept))


def numpy(graph: Graph, node: Node) -> Operation:
    one = options(graph, node)

    def run(step: Step, logits: np.ndarray) -> tuple[np.ndarray, ...]:
        return expert_reference.route(
            logits, one.kept, one.kind, one.select, one.normalize, one.scale, one.floor, one.groups, one.keep
        )

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """ROUTE and SORT. The choice stands as the table of kernels_arm/route.py, in a buffer of one row."""
    node, one = group.node, options(lowering.graph, group.node)
    chosen, of_chosen = node.outputs
    table = lowering.rows(chosen, padded(one.table(lowering.batch), layout.ROWS), 1).view(np.int32)
    out = lowering.rows(of_chosen, one.kept)
    logits = lowering.array(node.inputs[0])
    for row in route_records(one, logits, table, out, lowering.keep):
        lowering.add(node, row)
    lowering.need(one.scratch)
