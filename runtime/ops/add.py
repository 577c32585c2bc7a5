"""Add: the standard operator, of two streams.

Where one of the two is a product's output the product adds in place (runtime/fuse.py), else it is a record.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import ops
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Signature, Traits, disagreement
from flatlm.runtime.format.values import Values
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step
from flatlm.runtime.ops.pairs import lower_pair, pair_of_streams

NAME, TRAITS = "Add", Traits()
_SIGNATURE = Signature({"a": None, "b": None}, ("y",))


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    if node.inputs[0] == node.inputs[1]:
        raise disagreement(node, f"it adds {node.inputs[0]!r} to itself")


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    return pair_of_streams(given)


def numpy(graph: Graph, node: Node) -> Operation:
    def run(step: Step, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
        return (a + b,)

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """ADD_ROWS."""
    lower_pair(lowering, group.node, ops.ADD_ROWS)
