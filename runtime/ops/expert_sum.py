"""ExpertSum: for each token the sum of its experts' rows, each times its share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import expert_reference
from flatlm.kernels_arm.expert_records import sum_record
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Signature, Traits
from flatlm.runtime.format.values import (
    Values,
    choice,
    columns_of,
    expert_rows,
    kept_of,
    shares,
    streams,
)
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = "ExpertSum", Traits()
_SIGNATURE = Signature({"x": None, "choice": None, "shares": None}, ("y",))


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    """The signature says it all."""


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    columns, kept, experts = columns_of(given[0]), kept_of(given[0]), columns_of(given[1])
    return (expert_rows(columns, kept), choice(experts, kept), shares(kept)), streams(columns)


def numpy(graph: Graph, node: Node) -> Operation:
    def run(step: Step, x: np.ndarray, chosen: np.ndarray, of_chosen: np.ndarray) -> tuple[np.ndarray, ...]:
        return (expert_reference.expert_sum(x, of_chosen),)

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """EXPERT_SUM: the rows stand sorted by expert, and the choice says where."""
    node = group.node
    columns, kept = lowering.values[node.inputs[0]].size
    rows, table, of_chosen = (lowering.array(name) for name in node.inputs)
    out = lowering.rows(node.outputs[0], columns)
    lowering.add(node, sum_record(of_chosen, rows, table, out, columns, kept, lowering.keep))
    lowering.need(8 * kept)
