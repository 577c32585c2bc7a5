"""GroupedNorm: root-mean-square norm of each group of `size` columns, times a weight for each column.

Natively in place. With weights of 1 / √size it is the Euclidean norm.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import layout, ops, reference
from flatlm.kernels_arm.records import held, record
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Constant, Signature, Traits, misfit
from flatlm.runtime.format.values import Values, streams
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = "GroupedNorm", Traits(ragged=True)
_SIGNATURE = Signature(
    {"x": None, "weight": Constant("float32", ("k",))},
    ("y",),
    {"size": Attr(int), "epsilon": Attr(float)},
    overwritten=("x",),
)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    (columns,) = graph.constants[node.inputs[1]].shape
    if columns % int(node.attrs["size"]):
        raise misfit(node, f"{columns} columns are not groups of {node.attrs['size']}")


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    stream = streams(*graph.constants[node.inputs[1]].shape)
    return stream, stream


def numpy(graph: Graph, node: Node) -> Operation:
    size, epsilon = int(node.attrs["size"]), float(node.attrs["epsilon"])
    weight = graph.array(node.inputs[1]).reshape(-1, size)

    def run(step: Step, x: np.ndarray) -> tuple[np.ndarray, ...]:
        groups = x.reshape(len(x), -1, size)
        return (reference.norm(groups, weight, epsilon).reshape(len(x), -1),)

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """HEAD_NORM, of groups as heads that have weights of their own."""
    node = group.node
    weight, size = lowering.graph.array(node.inputs[1]), int(node.attrs["size"])
    rows = lowering.share(node.outputs[0], node.inputs[0])
    floats = np.array([node.attrs["epsilon"], size], np.float32)
    lowering.add(node, record(
        ops.HEAD_NORM, ROWS_IN=rows.ctypes.data, ROWS_IN_STRIDE=rows.strides[0], ROWS_COLUMNS=size,
        ROWS_HEADS=len(weight) // size, ROWS_FLOATS=lowering.held(floats, np.float32),
        ROWS_WEIGHT=held(lowering.keep, weight, np.float32, len(weight) + layout.ROWS),
        ROWS_WEIGHT_STEP=4 * size,
    ))  # fmt: skip
