"""Rotate: the rotary embedding over the halves of each head.

Natively as keys and values are appended (runtime/fuse.py), else in place.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import ops, reference
from flatlm.kernels_arm.records import record
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Signature, Traits
from flatlm.runtime.format.values import Values, heads, heads_of, table
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = "Rotate", Traits()
_SIGNATURE = Signature({"x": None, "cos": None, "sin": None}, ("y",), overwritten=("x",))


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    """The signature says it all."""


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    number, size = heads_of(given[0])
    return (heads(number, size), table(size // 2), table(size // 2)), (heads(number, size),)


def numpy(graph: Graph, node: Node) -> Operation:
    def run(step: Step, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> tuple[np.ndarray, ...]:
        return (reference.rotate(x, cos, sin),)

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """TURN."""
    node = group.node
    number, size = lowering.values[node.outputs[0]].size
    rows = lowering.share(node.outputs[0], node.inputs[0])
    cos, sin = (lowering.tables[name] for name in node.inputs[1:])
    lowering.add(node, record(
        ops.TURN, R_QKV=rows.ctypes.data, R_STRIDE=rows.strides[0], R_HEADS=number, R_SIZE=size,
        R_COS=cos, R_SIN=sin,
    ))  # fmt: skip
