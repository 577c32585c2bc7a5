"""HeadNorm: norm of each head, times a weight for each column of a head; or of all heads as one row.

Natively in place, where a product left queries, keys or values, before or after they are rotated.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import layout, ops, reference
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.records import held, record
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Constant, Signature, Traits, disagreement
from flatlm.runtime.format.values import Values, heads, heads_of
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step
from flatlm.runtime.ops.norm import CENTERED, is_centered

NAME, TRAITS = "HeadNorm", Traits()
HEAD, OWN, ALL = "head", "own", "all"  # each head; each by a weight of its own; all of them as one row
_SIGNATURE = Signature(
    {"x": None, "weight": Constant("float32", ("d",))},
    ("y",),
    {"epsilon": Attr(float), "scope": Attr(str, (HEAD, OWN, ALL), default=HEAD), **CENTERED},
    overwritten=("x",),
)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    is_centered(node)


def scope(node: Node) -> str:
    """What is one norm, and has weights of its own."""
    return str(node.attrs.get("scope", HEAD))


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    number, size = heads_of(given[0])
    (weights,) = graph.constants[node.inputs[1]].shape
    if scope(node) == HEAD:
        return (heads(number, weights),), (heads(number, size),)
    if weights != number * size:
        raise disagreement(node, f"{weights} weights for {number} heads of {size} columns")
    return (heads(number, size),), (heads(number, size),)


def numpy(graph: Graph, node: Node) -> Operation:
    weight, epsilon, centered = (
        graph.array(node.inputs[1]),
        float(node.attrs["epsilon"]),
        is_centered(node),
    )
    of = scope(node)

    def run(step: Step, x: np.ndarray) -> tuple[np.ndarray, ...]:
        if of == ALL:
            return (reference.norm(x.reshape(len(x), -1), weight, epsilon, centered).reshape(x.shape),)
        own = weight if of == HEAD else weight.reshape(x.shape[1:])
        return (reference.norm(x, own, epsilon, centered),)

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """HEAD_NORM."""
    node = group.node
    weight = lowering.graph.array(node.inputs[1])
    number, size = lowering.values[node.outputs[0]].size
    if scope(node) == ALL:
        number, size = 1, number * size
    rows = lowering.share(node.outputs[0], node.inputs[0])
    floats = np.array([node.attrs["epsilon"], size], np.float32)
    lowering.add(node, record(
        ops.HEAD_NORM, ROWS_IN=rows.ctypes.data, ROWS_IN_STRIDE=rows.strides[0], ROWS_COLUMNS=size,
        ROWS_HEADS=number, ROWS_FLOATS=lowering.held(floats, np.float32),
        ROWS_WEIGHT=held(lowering.keep, weight, np.float32, padded(weight.size, layout.ROWS) + layout.ROWS),
        ROWS_WEIGHT_STEP=4 * size if scope(node) == OWN else 0, ROWS_CENTERED=int(is_centered(node)),
    ))  # fmt: skip
