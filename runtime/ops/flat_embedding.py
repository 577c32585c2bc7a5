"""FlatEmbedding: rows of a packed matrix by token id or position, each with its scale."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import layout, ops, reference
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.records import record
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Constant, Signature, Traits, disagreement
from flatlm.runtime.format.values import IDS, POSITIONS, Values, streams
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step
from flatlm.runtime.ops.packed import EXCESS, MATRIX, WEIGHT, check_excess, sizes

NAME, TRAITS = "FlatEmbedding", Traits(embedding=True)
_SIGNATURE = Signature(
    {"ids": None, **WEIGHT, "scale": Constant("float32", ("rows",)), **EXCESS}, ("y",), MATRIX
)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    check_excess(graph, node)
    _check_padding(graph, node)


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    ids = POSITIONS if given[0] == POSITIONS else IDS
    return (ids,), streams(sizes(graph, node)[1])


def _check_padding(graph: Graph, node: Node) -> None:
    """An embedding's rows are read with their padding, which norms then sum up. Nothing else reads any."""
    rows, columns = sizes(graph, node)
    true, width = columns % layout.COLUMNS, padded(columns, layout.COLUMNS)
    if not true:  # as in nearly all models: no weight is looked at
        return
    weight, delta, value = (node.inputs[i] for i in (1, -2, -1))
    bits = graph.bits(weight)
    steps = graph.array(weight).view(np.uint8).reshape(-1, width * bits // 32, layout.STEP)
    last = np.ascontiguousarray(steps[:, -layout.COLUMNS * bits // 32 :])
    position = np.cumsum(graph.array(delta), dtype=np.int64)
    total = graph.array(value)
    beyond = (position % width >= columns) & ((total < layout.INT4_LOW) | (total > layout.INT4_HIGH))
    if layout.unpack(last, rows, layout.COLUMNS, bits)[:, true:].any() or beyond.any():
        raise disagreement(node, f"the padding of {weight!r} beyond {columns} columns is not zeros")


def numpy(graph: Graph, node: Node) -> Operation:
    weights, scale = graph.totals(node), graph.array(node.inputs[2])

    def run(step: Step, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        return (reference.embedding(ids, weights, scale),)

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """EMBED. The packed bytes are read where they are mapped."""
    node, graph = group.node, lowering.graph
    ids, weight, scale, delta, value = node.inputs
    packed, bits = graph.constants[weight].data, graph.bits(weight)
    lowering.keep.append(packed)
    columns = padded(int(node.attrs["columns"]), layout.COLUMNS)
    out = lowering.rows(node.outputs[0], columns)
    lowering.add(node, record(
        ops.EMBED, EMBED_WEIGHTS=packed.ctypes.data, EMBED_BITS=bits,
        EMBED_SCALE=lowering.held(graph.array(scale), np.float32), EMBED_STEPS=columns * bits // 32,
        EMBED_OUT=out.ctypes.data, EMBED_STRIDE=out.strides[0],
        EMBED_POSITIONS=int(lowering.values[ids] == POSITIONS),
        **_excess(lowering, node, graph.array(delta), graph.array(value)),
    ))  # fmt: skip


def _excess(lowering: Lowering, node: Node, deltas: np.ndarray, totals: np.ndarray) -> dict[str, int]:
    """The sparse excess row by row; nothing for a node without any."""
    if not deltas.size:
        return {}
    rows, columns = (padded(int(node.attrs[a]), 16) for a in ("rows", "columns"))
    table = layout.decode_excess(deltas, totals, rows, columns)
    return {
        "EMBED_STARTS": lowering.held(table.starts, np.int32),
        "EMBED_COLUMNS": lowering.held(table.columns, np.uint16),
        "EMBED_EXCESS": lowering.held(table.excess, np.int8),
    }
