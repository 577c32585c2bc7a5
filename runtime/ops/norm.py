"""Norm: root-mean-square norm over a row, or over a row less its mean, times a weight for each column.

Where it feeds products alone it runs as they quantize their input, where it is added to a stream it adds in
place (runtime/fuse.py), else it is a record.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import layout, ops, reference
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.records import Rows, held, record
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Constant, Signature, Traits, misfit
from flatlm.runtime.format.values import Values, streams
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = "Norm", Traits()
CENTERED = {"centered": Attr(int, default=0)}
_SIGNATURE = Signature(
    {"x": None, "weight": Constant("float32", ("k",))}, ("y",), {"epsilon": Attr(float), **CENTERED}
)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    is_centered(node)


def is_centered(node: Node) -> bool:
    """Whether the mean is taken off first."""
    if (given := node.attrs.get("centered", 0)) not in (0, 1):
        raise misfit(node, f"centered is {given}, not 1 or absent")
    return given == 1


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    both = streams(*graph.constants[node.inputs[1]].shape)
    return both, both


def numpy(graph: Graph, node: Node) -> Operation:
    weight, epsilon, centered = (
        graph.array(node.inputs[1]),
        float(node.attrs["epsilon"]),
        is_centered(node),
    )

    def run(step: Step, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (reference.norm(x, weight, epsilon, centered),)

    return run


def rows_of(lowering: Lowering, node: Node) -> Rows:
    """The norm as a part of a quantization."""
    weight = lowering.graph.array(node.inputs[1])
    kind = ops.CENTERED if is_centered(node) else ops.NORM
    return Rows(lowering.array(node.inputs[0]), kind, float(node.attrs["epsilon"]), weight)


def lower(lowering: Lowering, group: Group) -> None:
    """NORM_ROWS."""
    node = group.node
    weight = lowering.graph.array(node.inputs[1])
    x, other = lowering.array(node.inputs[0]), 0
    if group.add:
        out = lowering.share(group.add.outputs[0], group.other)
        other = out.ctypes.data
    else:
        out = lowering.rows(node.outputs[0], weight.size)
    floats = np.array([node.attrs["epsilon"], weight.size], np.float32)
    lowering.add(node, record(
        ops.NORM_ROWS, ROWS_IN=x.ctypes.data, ROWS_IN_STRIDE=x.strides[0], ROWS_OUT=out.ctypes.data,
        ROWS_OUT_STRIDE=out.strides[0], ROWS_COLUMNS=weight.size, ROWS_CENTERED=int(is_centered(node)),
        ROWS_OTHER=other, ROWS_FLOATS=lowering.held(floats, np.float32),
        ROWS_WEIGHT=held(lowering.keep, weight, np.float32, padded(weight.size, layout.ROWS)),
    ))  # fmt: skip
