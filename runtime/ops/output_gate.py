"""OutputGate: a value times an activation of another, a column of which is for one of its own or several.

Of attention's output, a gate for each column or for each head; of an expert that all tokens share, one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import ops, reference
from flatlm.kernels_arm.records import record
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Signature, Traits, disagreement
from flatlm.runtime.format.values import Values, columns_of, streams
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.activation import ACT, act_of
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = "OutputGate", Traits()
_SIGNATURE = Signature({"x": None, "gate": None}, ("y",), ACT)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    """The signature says it all."""


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    columns, gates = map(columns_of, given)
    if not gates or columns % gates:
        raise disagreement(node, f"{columns} columns and {gates} gates do not divide")
    return streams(columns, gates), streams(columns)


def numpy(graph: Graph, node: Node) -> Operation:
    act = str(node.attrs["act"])

    def run(step: Step, x: np.ndarray, gate: np.ndarray) -> tuple[np.ndarray, ...]:
        return (reference.output_gate(x, gate, act),)

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """GATE_ROWS."""
    node = group.node
    columns, gates = (columns_of(lowering.values[name]) for name in node.inputs)
    x, gate = (lowering.array(name) for name in node.inputs)
    out = lowering.rows(node.outputs[0], columns)
    lowering.add(node, record(
        ops.GATE_ROWS, ROWS_IN=gate.ctypes.data, ROWS_IN_STRIDE=gate.strides[0], ROWS_OUT=out.ctypes.data,
        ROWS_OUT_STRIDE=out.strides[0], ROWS_COLUMNS=columns, ROWS_ACT=act_of(node),
        ROWS_HEADS=0 if gates == columns else gates, ROWS_OTHER=x.ctypes.data,
        ROWS_OTHER_STRIDE=x.strides[0],
    ))  # fmt: skip
