"""Mul: the standard operator, of two streams."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import ops
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Signature, Traits
from flatlm.runtime.format.values import Values
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step
from flatlm.runtime.ops.pairs import lower_pair, pair_of_streams

NAME, TRAITS = "Mul", Traits()
_SIGNATURE = Signature({"a": None, "b": None}, ("y",))


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    """The signature says it all."""


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    return pair_of_streams(given)


def numpy(graph: Graph, node: Node) -> Operation:
    def run(step: Step, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
        return (a * b,)

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """MULTIPLY_ROWS."""
    lower_pair(lowering, group.node, ops.MULTIPLY_ROWS)
