"""ClampedGate: the first half of a row times its sigmoid, times the second half, both clamped.

Natively as products quantize their input (runtime/fuse.py), and only there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import expert_reference, ops
from flatlm.kernels_arm.records import Rows
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Signature, Traits, misfit, no_kernel
from flatlm.runtime.format.values import Values, columns_of, like
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = "ClampedGate", Traits()
_SIGNATURE = Signature({"gate_up": None}, ("y",), {"alpha": Attr(float), "limit": Attr(float)})
_MOST = 1e4  # of alpha and of limit


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    for name in ("alpha", "limit"):
        if not 0 < float(node.attrs[name]) <= _MOST:
            raise misfit(node, f"{name} is {node.attrs[name]}, not a number above 0 and up to {_MOST:g}")


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    half = columns_of(given[0]) // 2
    return like(given[0], 2 * half), like(given[0], half)


def _numbers(node: Node) -> tuple[float, float]:
    return float(node.attrs["alpha"]), float(node.attrs["limit"])


def numpy(graph: Graph, node: Node) -> Operation:
    alpha, limit = _numbers(node)

    def run(step: Step, gate_up: np.ndarray) -> tuple[np.ndarray, ...]:
        return (expert_reference.clamped_gate(gate_up, alpha, limit),)

    return run


def rows_of(lowering: Lowering, node: Node) -> Rows:
    """The gate as a part of a quantization."""
    numbers = expert_reference.clamps(*_numbers(node))
    return Rows(lowering.array(node.inputs[0]), ops.CLAMPED, numbers=tuple(map(float, numbers)))


def lower(lowering: Lowering, group: Group) -> None:
    raise no_kernel(group.node, "a clamped gate that something else than products reads")
