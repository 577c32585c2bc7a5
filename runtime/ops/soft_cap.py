"""SoftCap: cap · tanh(x / cap) of the logits; nothing but the head's product stands before it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import ops, reference
from flatlm.kernels_arm.records import record
from flatlm.runtime.format.graph import SOFT_CAP, Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Signature, Traits, disagreement
from flatlm.runtime.format.values import Values, columns_of, streams
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.attend import cap_of, check_cap
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = SOFT_CAP, Traits()
_SIGNATURE = Signature({"x": None}, ("y",), {"softcap": Attr(float)}, overwritten=("x",))


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    check_cap(node)
    if node.inputs[0] not in graph.head.outputs or node is not graph.nodes[-1]:
        raise disagreement(node, "it is of logits alone: the last node, after the head's product")


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    both = streams(columns_of(given[0]))
    return both, both


def numpy(graph: Graph, node: Node) -> Operation:
    cap = float(node.attrs["softcap"])

    def run(step: Step, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (reference.soft_cap(x, cap),)

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """SOFT_CAP."""
    node = group.node
    rows = lowering.share(node.outputs[0], node.inputs[0])
    lowering.add(node, record(
        ops.SOFT_CAP, ROWS_IN=rows.ctypes.data, ROWS_IN_STRIDE=rows.strides[0],
        ROWS_COLUMNS=columns_of(lowering.values[node.outputs[0]]),
        ROWS_FLOATS=cap_of(lowering, float(node.attrs["softcap"])),
    ))  # fmt: skip
