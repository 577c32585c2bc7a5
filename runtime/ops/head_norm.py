"""HeadNorm: root-mean-square norm of each head, times a weight for each column of a head.

Natively in place, where a product left queries or keys and before they are rotated.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import layout, ops, reference
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.records import held, record
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Constant, Signature, Traits
from flatlm.runtime.format.values import Values, heads, heads_of
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = "HeadNorm", Traits()
_SIGNATURE = Signature(
    {"x": None, "weight": Constant("float32", ("d",))}, ("y",), {"epsilon": Attr(float)}, overwritten=("x",)
)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    """The signature says it all."""


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    number, size = heads_of(given[0])
    return (heads(number, *graph.constants[node.inputs[1]].shape),), (heads(number, size),)


def numpy(graph: Graph, node: Node) -> Operation:
    weight, epsilon = graph.array(node.inputs[1]), float(node.attrs["epsilon"])

    def run(step: Step, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (reference.norm(x, weight, epsilon),)

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """HEAD_NORM."""
    node = group.node
    weight = lowering.graph.array(node.inputs[1])
    number, size = lowering.values[node.outputs[0]].size
    rows = lowering.share(node.outputs[0], node.inputs[0])
    floats = np.array([node.attrs["epsilon"], size], np.float32)
    lowering.add(node, record(
        ops.HEAD_NORM, ROWS_IN=rows.ctypes.data, ROWS_IN_STRIDE=rows.strides[0], ROWS_COLUMNS=size,
        ROWS_HEADS=number, ROWS_FLOATS=lowering.held(floats, np.float32),
        ROWS_WEIGHT=held(lowering.keep, weight, np.float32, padded(size, layout.ROWS)),
    ))  # fmt: skip
