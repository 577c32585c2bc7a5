"""FlatExperts: for each token the integer products of its chosen experts, each row in a step of its own.

All experts of a layer share the limits of their inputs. Of the weights, which stay in the mapped file, only
the panels of chosen experts are read.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import reference
from flatlm.kernels_arm.expert_layout import PackedExperts, unpack
from flatlm.kernels_arm.expert_records import ExpertDigits, ExpertWeights, expert_digits, expert_records
from flatlm.kernels_arm.layout import ROWS, padded
from flatlm.kernels_arm.records import Integers
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import PACKED, Attr, Constant, Signature, Traits, misfit
from flatlm.runtime.format.values import Values, are_of_experts, kept_of
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops import experts
from flatlm.runtime.ops.function import Operation, Step
from flatlm.runtime.ops.packed import MATRIX
from flatlm.runtime.ops.products import check_levels, exact_product, rows_before

NAME, TRAITS = "FlatExperts", Traits()
_EXCESS = {
    "excess_start": Constant("int32", ("S",)),
    "excess_delta": Constant("uint8", ("E",)),
    "excess_value": Constant("int8", ("E",)),
}
_SIGNATURE = Signature(
    {
        "x": None,
        "weight": Constant(PACKED),
        "choice": None,
        "scale": Constant("float32", ("experts", "rows")),
        "bias": Constant("float32", ("experts", "rows")),
        "limit": Constant("float32", ("columns",)),
        **_EXCESS,
    },
    ("y",),
    {"experts": Attr(int), **MATRIX, "levels": Attr(int)},
)
_X, _WEIGHT, _CHOICE, _SCALE, _BIAS, _LIMIT = range(6)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def _sizes(node: Node) -> tuple[int, int, int]:
    """Experts, rows and columns of each."""
    number, rows, columns = (int(node.attrs[name]) for name in ("experts", "rows", "columns"))
    return number, rows, columns


def check(graph: Graph, node: Node) -> None:
    """Entries of the excess are not looked at: that would read them all. A kernel stays in its panel."""
    check_levels(graph, node, node.inputs[_LIMIT])
    number, rows, _ = _sizes(node)
    start, delta = (graph.array(name) for name in node.inputs[-3:-1])
    if not start.size and not delta.size:
        return
    if graph.bits(node.inputs[_WEIGHT]) != 4:
        raise misfit(node, "sparse excess goes with uint4 weights only")
    wanted = number * (padded(rows, ROWS) // ROWS) + 1
    if start.size != wanted or start[0] != 0 or start[-1] != delta.size or (np.diff(start) < 1).any():
        raise misfit(
            node, f"{node.inputs[-3]!r} does not tell where the excess of {wanted - 1} panels begins"
        )


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    return experts.of_experts(given, *_sizes(node))


def integers(graph: Graph, node: Node) -> Integers:
    """How the node's input becomes integers."""
    return Integers(graph.array(node.inputs[_LIMIT]), int(node.attrs["levels"]), None)


def _packed(graph: Graph, node: Node) -> PackedExperts:
    return PackedExperts(
        graph.constants[node.inputs[_WEIGHT]].data, *(graph.array(n) for n in node.inputs[-3:])
    )


def totals(graph: Graph, node: Node, number: int) -> np.ndarray:
    """The integer weights of one expert, int8 [rows, columns], excess included."""
    _, rows, columns = _sizes(node)
    return unpack(_packed(graph, node), number, rows, columns, graph.bits(node.inputs[_WEIGHT]))


def expert_bytes(graph: Graph, node: Node) -> int:
    """Of one expert in the file, about: what a token that goes to it reads."""
    names = (node.inputs[_WEIGHT], *node.inputs[_SCALE:_LIMIT], *node.inputs[-3:])
    return sum(graph.constants[name].data.nbytes for name in names) // _sizes(node)[0]


# ---- by numpy
def numpy(graph: Graph, node: Node) -> Operation:
    """Expert by expert: only those that are chosen are unpacked, anew in each step."""
    scale, bias, limit = (graph.array(node.inputs[i]) for i in (_SCALE, _BIAS, _LIMIT))
    levels, (_, rows, columns) = int(node.attrs["levels"]), _sizes(node)

    def run(step: Step, x: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, ...]:
        given = np.broadcast_to(x[:, None], (*chosen.shape, columns)) if x.ndim == 2 else x
        y = np.empty((*chosen.shape, rows), np.float32)
        for e in np.unique(chosen):
            product = exact_product(totals(graph, node, e).T.astype(np.float32), limit)
            whole, size = reference.quantize_token(given[chosen == e], limit.astype(np.int32), levels)
            y[chosen == e] = reference.scale_product(product(whole), scale[e], bias[e], size)
        return (y,)

    return run


# ---- as records
def lower(lowering: Lowering, group: Group) -> None:
    """QUANTIZE_ROWS, PACK and EXPERTS."""
    node, graph = group.node, lowering.graph
    of_token = not are_of_experts(lowering.values[node.inputs[_X]])
    kept = kept_of(lowering.values[node.inputs[_CHOICE]])
    whole, packed = integers(graph, node), _packed(graph, node)
    weights = ExpertWeights(
        packed.packed, graph.bits(node.inputs[_WEIGHT]), graph.array(node.inputs[_SCALE]),
        graph.array(node.inputs[_BIAS]), packed.starts, packed.delta, packed.value,
    )  # fmt: skip
    out = lowering.rows(node.outputs[0], int(node.attrs["rows"]), lowering.batch * kept)
    rows, table = rows_before(lowering, group), lowering.array(node.inputs[_CHOICE])
    for row in expert_records(
        whole, weights, rows, table, out, _digits(lowering), lowering.keep,
        each=1 if of_token else kept, spread=kept if of_token else 0,
    ):  # fmt: skip
        lowering.add(node, row)
    lowering.need(whole.scratch)


def _digits(lowering: Lowering) -> ExpertDigits:
    """Buffers that the products of experts of all layers use in turn, as large as the largest needs."""
    if lowering.experts is None:
        graph, values = lowering.graph, lowering.values
        nodes = [node for node in graph.nodes if node.op == NAME]
        kept = max(kept_of(values[node.inputs[_CHOICE]]) for node in nodes)
        most = max(int(node.attrs["experts"]) for node in nodes)
        products = (integers(graph, node) for node in nodes)
        lowering.experts = expert_digits(lowering.batch * kept, products, most, lowering.keep)
    return lowering.experts
