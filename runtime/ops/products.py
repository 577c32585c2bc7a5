"""What FlatLinear and FlatLinearToken have in common: a product of integers with packed weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flatlm.kernels_arm import lookups, records, reference
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.format.signature import Attr, Constant, misfit
from flatlm.runtime.format.values import Values, streams
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops import activation, clamped_gate, gated, norm
from flatlm.runtime.ops.function import Operation, Step
from flatlm.runtime.ops.packed import EXCESS, MATRIX, WEIGHT, check_excess, sizes

MOST_PIECES = 127  # of a channel: its X of 127 · 127 steps is two int8 digits
EXACT = 1024  # products of int8 summed in float32 stay below 2**24, hence exact, over this many terms

X, WEIGHTS = 0, {**WEIGHT, "scale": Constant("float32", ("rows",)), "bias": Constant("float32", ("rows",))}
SCALE, BIAS = 2, 3  # places of inputs, as those of LIMIT and the excess from the end
LIMIT_EXCESS = {"limit": Constant("float32", ("columns",)), **EXCESS}
LIMIT, DELTA, VALUE = -3, -2, -1
ATTRS = {**MATRIX, "levels": Attr(int)}

# what a quantization does to a row first
_INSIDE = {
    norm.NAME: norm.rows_of,
    gated.NAME: gated.rows_of,
    activation.NAME: activation.rows_of,
    clamped_gate.NAME: clamped_gate.rows_of,
}


def check(graph: Graph, node: Node) -> None:
    check_excess(graph, node)
    check_levels(graph, node, node.inputs[LIMIT])


def check_levels(graph: Graph, node: Node, name: str) -> None:
    """FormatError where the limits of the constant `name` are not those of pieces of `levels` steps."""
    levels = int(node.attrs["levels"])
    if levels not in (7, 127):
        raise misfit(node, f"levels are 7 or 127, not {levels}")
    pieces = graph.array(name) / np.float32(levels)
    if not np.all((pieces >= 1) & (pieces <= MOST_PIECES) & (pieces == np.rint(pieces))):
        what = f"{levels}, {2 * levels}, … {MOST_PIECES * levels}"
        raise misfit(node, f"{name!r} has limits that are not of {what}")


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    rows, columns = sizes(graph, node)
    return streams(columns), streams(rows)


# ---- by numpy
def product(graph: Graph, node: Node, inverse_scale: np.floating | None) -> Operation:
    """Integer products through float32 BLAS in exact pieces. inverse_scale None: each token has its own."""
    scale, bias = (graph.array(node.inputs[i]) for i in (SCALE, BIAS))
    levels = int(node.attrs["levels"])
    limit = graph.array(node.inputs[LIMIT]).astype(np.int32)
    sums = exact_product(graph.totals(node).T.astype(np.float32), limit)

    def run(step: Step, x: np.ndarray) -> tuple[np.ndarray, ...]:
        if inverse_scale is None:
            integers, size = reference.quantize_token(x, limit, levels)
        else:
            integers, size = reference.quantize(x, np.float32(inverse_scale), limit), None
        return (reference.scale_product(sums(integers), scale, bias, size),)

    return run


def exact_product(weights: np.ndarray, limit: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """X int32 [m, k] → X · weights as int32 [m, n]; weights: integer-valued float32 [k, n]."""
    wide = np.flatnonzero(limit > 127)

    def sums(integers: np.ndarray) -> np.ndarray:
        low, high = reference.digits(integers, limit)
        acc = _exact(low, weights)
        if wide.size:
            acc += reference.DIGIT * _exact(high[:, wide], weights[wide])
        return acc

    return sums


def _exact(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """int8 [m, k] · integer-valued float32 [k, n] → int32 [m, n]."""
    acc = np.zeros((len(x), weights.shape[1]), np.int32)
    for at in range(0, weights.shape[0], EXACT):
        acc += (x[:, at : at + EXACT].astype(np.float32) @ weights[at : at + EXACT]).astype(np.int32)
    return acc


# ---- as records
def lower_product(lowering: Lowering, group: Group) -> None:
    """QUANTIZE, but where the digits are already there, and PRODUCT."""
    node, last = group.node, group.node is lowering.graph.head
    integers = lowering.products[node.name]
    weights = _weights(lowering, node, integers)
    sparse = weights.excess is not None
    # what the digits are made of: by the other plane of a nested layer, they may be there
    inverse = node.inputs[BIAS + 1] if integers.inverse_scale is not None else None
    made = (node.inputs[X], node.op, node.attrs["levels"], node.inputs[LIMIT], inverse, last)
    if lowering.quantized not in ((*made, True), (*made, sparse)):
        lowering.add(node, records.quantize_record(
            integers, rows_before(lowering, group), lowering.digits, lowering.keep, by_row=sparse, last=last
        ))  # fmt: skip
        lowering.quantized = (*made, sparse)  # with rows for the excess to be looked up in, or not
    if group.add:  # into the residual stream, where that ends
        out = lowering.share(group.add.outputs[0], group.other)
    else:
        count = lowering.logit_rows if last else None
        out = lowering.rows(node.outputs[0], int(node.attrs["rows"]), count)
    lowering.add(node, records.product_record(
        integers, weights, out, lowering.digits, lowering.keep, add=group.add is not None, last=last
    ))  # fmt: skip
    lowering.need(integers.scratch)


def rows_before(lowering: Lowering, group: Group) -> records.Rows:
    """The rows that a group's quantization reads, and what it does to them first."""
    if not group.before:
        return records.Rows(lowering.array(group.node.inputs[X]))
    (inside,) = group.before
    return _INSIDE[inside.op](lowering, inside)


def _weights(lowering: Lowering, node: Node, integers: records.Integers) -> records.Weights:
    """The packed bytes where they are mapped, with the sparse excess as lookups."""
    graph, rows = lowering.graph, int(node.attrs["rows"])
    delta, value, scale, bias = (graph.array(node.inputs[i]) for i in (DELTA, VALUE, SCALE, BIAS))
    excess = lookups.of_product(lowering.kernels, delta, value, rows, integers.groups, integers.limit)
    weight = node.inputs[1]
    return records.Weights(graph.constants[weight].data, graph.bits(weight), scale, bias, excess)
