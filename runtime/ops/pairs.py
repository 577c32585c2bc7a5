"""What functions of two streams of one width have in common."""

from __future__ import annotations

from flatlm.kernels_arm.records import record
from flatlm.runtime.format.graph import Node
from flatlm.runtime.format.values import Values, columns_of, streams
from flatlm.runtime.lowering import Lowering


def pair_of_streams(given: Values) -> tuple[Values, Values]:
    """Two as wide as the first, and one more."""
    stream = streams(columns_of(given[0]))
    return (*stream, *stream), stream


def lower_pair(lowering: Lowering, node: Node, code: int) -> None:
    """A record that makes rows of two."""
    columns = columns_of(lowering.values[node.outputs[0]])
    a, b = (lowering.array(name) for name in node.inputs)
    out = lowering.rows(node.outputs[0], columns)
    lowering.add(node, record(
        code, ROWS_IN=a.ctypes.data, ROWS_IN_STRIDE=a.strides[0], ROWS_OUT=out.ctypes.data,
        ROWS_OUT_STRIDE=out.strides[0], ROWS_COLUMNS=columns, ROWS_OTHER=b.ctypes.data,
        ROWS_OTHER_STRIDE=b.strides[0],
    ))  # fmt: skip
