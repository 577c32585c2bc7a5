"""Packed weights as an input of products and embeddings: their attributes and what they must satisfy."""

from __future__ import annotations

import numpy as np

from flatlm.kernels_arm import layout
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.format.signature import PACKED, Attr, Constant, misfit

WEIGHT = {"weight": Constant(PACKED)}
EXCESS = {"excess_delta": Constant("uint8", ("E",)), "excess_value": Constant("int8", ("E",))}  # the last two
MATRIX = {"rows": Attr(int), "columns": Attr(int), "offset": Attr(int)}

MOST_PLACES = 1 << 16  # digits of a token's row that excess may point to, low and high ones: uint16


def check_excess(graph: Graph, node: Node) -> None:
    """FormatError where the sparse excess leaves the matrix or what the kernels know."""
    weight, delta, value = (graph.constants[name] for name in (node.inputs[1], *node.inputs[-2:]))
    if not delta.shape[0]:
        return
    elements = int(np.prod(weight.shape, dtype=np.int64))
    last = int(np.sum(delta.data, dtype=np.int64))
    if weight.dtype != "uint4":
        raise misfit(node, "sparse excess goes with uint4 weights only")
    if last >= elements:
        raise misfit(node, f"excess at position {last} of {elements} weights in {node.inputs[-2]!r}")
    if not delta.data[1:].all():
        raise misfit(node, f"two entries of excess at one position in {node.inputs[-2]!r}")
    if 2 * layout.padded(int(node.attrs["columns"]), layout.COLUMNS) > MOST_PLACES:
        raise misfit(
            node, f"{node.attrs['columns']} columns with excess, the kernels know {MOST_PLACES // 2}"
        )
    if max(int(value.data.max()), -int(value.data.min())) > layout.MAX_TOTAL:
        raise misfit(node, f"a weight total beyond ±{layout.MAX_TOTAL} in {node.inputs[-1]!r}")


def sizes(graph: Graph, node: Node) -> tuple[int, int]:
    """Rows and columns of a product or an embedding, packed or float."""
    if "rows" in node.attrs:
        return int(node.attrs["rows"]), int(node.attrs["columns"])
    rows, columns = graph.constants[node.inputs[1]].shape
    return rows, columns
