"""Gated: an activation of the first half of a row times its second half.

Where it feeds products alone it runs as they quantize their input (runtime/fuse.py), else as a record.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import ops, reference
from flatlm.kernels_arm.records import Rows, record
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Signature, Traits
from flatlm.runtime.format.values import Values, columns_of, like
from flatlm.runtime.lowering import Group, Lowering, require_stream
from flatlm.runtime.ops.activation import ACT, act_of
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = "Gated", Traits()
_SIGNATURE = Signature({"gate_up": None}, ("y",), ACT)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    """The signature says it all."""


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    half = columns_of(given[0]) // 2
    return like(given[0], 2 * half), like(given[0], half)


def numpy(graph: Graph, node: Node) -> Operation:
    act = str(node.attrs["act"])

    def run(step: Step, gate_up: np.ndarray) -> tuple[np.ndarray, ...]:
        return (reference.gated(gate_up, act),)

    return run


def rows_of(lowering: Lowering, node: Node) -> Rows:
    """The activation as a part of a quantization."""
    return Rows(lowering.array(node.inputs[0]), ops.GATED, act=act_of(node))


def lower(lowering: Lowering, group: Group) -> None:
    """GATE_ROWS."""
    node = group.node
    require_stream(lowering, node)
    columns = columns_of(lowering.values[node.outputs[0]])
    x, out = lowering.array(node.inputs[0]), lowering.rows(node.outputs[0], columns)
    lowering.add(node, record(
        ops.GATE_ROWS, ROWS_IN=x.ctypes.data, ROWS_IN_STRIDE=x.strides[0], ROWS_OUT=out.ctypes.data,
        ROWS_OUT_STRIDE=out.strides[0], ROWS_COLUMNS=columns, ROWS_ACT=act_of(node),
        ROWS_OTHER=x.ctypes.data + 4 * columns, ROWS_OTHER_STRIDE=x.strides[0],
    ))  # fmt: skip
