"""Activation: a function of each element by itself.

Where it feeds products alone it runs as they quantize their input (runtime/fuse.py), else as a record.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import ops, reference
from flatlm.kernels_arm.records import Rows, record
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Signature, Traits, misfit
from flatlm.runtime.format.values import Values, columns_of, like
from flatlm.runtime.lowering import Group, Lowering, require_stream
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = "Activation", Traits()
ACT = {"act": Attr(str, tuple(ops.ACTS))}  # of a gate
MOST_NUMBER = 1e6
_PLAIN = {"act": Attr(str, tuple(ops.PLAIN_ACTS))}


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    names = ops.ACT_NUMBERS.get(str(attrs.get("act")), ())
    return Signature({"x": None}, ("y",), {**_PLAIN, **{name: Attr(float) for name in names}})


def check(graph: Graph, node: Node) -> None:
    for name, number in zip(ops.ACT_NUMBERS.get(str(node.attrs["act"]), ()), numbers(node), strict=True):
        if not abs(number) <= MOST_NUMBER:
            raise misfit(node, f"{name} is {number}, not a number within ±{MOST_NUMBER:g}")


def act_of(node: Node) -> int:
    """The code of the node's activation."""
    return ops.PLAIN_ACTS[str(node.attrs["act"])]


def numbers(node: Node) -> tuple[float, ...]:
    """Those that the node's activation has beside its argument."""
    return tuple(float(node.attrs[name]) for name in ops.ACT_NUMBERS.get(str(node.attrs["act"]), ()))


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    both = like(given[0], columns_of(given[0]))
    return both, both


def numpy(graph: Graph, node: Node) -> Operation:
    act, given = reference.PLAIN_ACTS[str(node.attrs["act"])], numbers(node)

    def run(step: Step, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (act(x, *given),)

    return run


def rows_of(lowering: Lowering, node: Node) -> Rows:
    """The activation as a part of a quantization."""
    return Rows(lowering.array(node.inputs[0]), ops.ACTED, act=act_of(node), numbers=numbers(node))


def lower(lowering: Lowering, group: Group) -> None:
    """ACT_ROWS."""
    node = group.node
    require_stream(lowering, node)
    columns = columns_of(lowering.values[node.outputs[0]])
    x, out = lowering.array(node.inputs[0]), lowering.rows(node.outputs[0], columns)
    lowering.add(node, record(
        ops.ACT_ROWS, ROWS_IN=x.ctypes.data, ROWS_IN_STRIDE=x.strides[0], ROWS_OUT=out.ctypes.data,
        ROWS_OUT_STRIDE=out.strides[0], ROWS_COLUMNS=columns, ROWS_ACT=act_of(node),
        ROWS_FLOATS=lowering.held(np.array(numbers(node)), np.float32),
    ))  # fmt: skip
