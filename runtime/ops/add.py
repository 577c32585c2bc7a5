"""Add: the standard operator, of two streams.

Where one of the two is a product's output the product adds in place (runtime/fuse.py), else it is a record.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import ops
from flatlm.kernels_arm.records import record
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Signature, Traits, disagreement
from flatlm.runtime.format.values import Values, columns_of, streams
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = "Add", Traits()
_SIGNATURE = Signature({"a": None, "b": None}, ("y",))


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    if node.inputs[0] == node.inputs[1]:
        raise disagreement(node, f"it adds {node.inputs[0]!r} to itself")


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    stream = streams(columns_of(given[0]))
    return (*stream, *stream), stream


def numpy(graph: Graph, node: Node) -> Operation:
    def run(step: Step, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
        return (a + b,)

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """ADD_ROWS."""
    node = group.node
    columns = columns_of(lowering.values[node.outputs[0]])
    a, b = (lowering.array(name) for name in node.inputs)
    out = lowering.rows(node.outputs[0], columns)
    lowering.add(node, record(
        ops.ADD_ROWS, ROWS_IN=a.ctypes.data, ROWS_IN_STRIDE=a.strides[0], ROWS_OUT=out.ctypes.data,
        ROWS_OUT_STRIDE=out.strides[0], ROWS_COLUMNS=columns, ROWS_OTHER=b.ctypes.data,
        ROWS_OTHER_STRIDE=b.strides[0],
    ))  # fmt: skip
