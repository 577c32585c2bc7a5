"""RotaryTable: cos and sin of position × inverse frequency."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import layout, reference
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Constant, Signature, Traits
from flatlm.runtime.format.values import POSITIONS, Values, table
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = "RotaryTable", Traits()
_SIGNATURE = Signature(
    {"position_ids": None, "inverse_frequency": Constant("float32", ("d/2",))}, ("cos", "sin")
)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    """The signature says it all."""


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    (half,) = graph.constants[node.inputs[1]].shape
    return (POSITIONS,), (table(half), table(half))


def numpy(graph: Graph, node: Node) -> Operation:
    frequency = graph.array(node.inputs[1])

    def run(step: Step, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        return reference.rotary_table(positions, frequency)

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """No record: the tables of all positions are made once, float32 [context, d/2]."""
    frequency = lowering.graph.array(group.node.inputs[1])
    made = reference.rotary_table(np.arange(lowering.context), frequency)
    for name, rows in zip(group.node.outputs, made, strict=True):
        rows = np.append(rows, np.zeros(layout.ROWS, np.float32))  # read past a row's end
        lowering.tables[name] = lowering.held(rows, np.float32)
