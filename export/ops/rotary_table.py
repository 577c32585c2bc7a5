"""RotaryTable: cosines and sines of positions times frequencies, exact far into the context."""

from __future__ import annotations

import numpy as np

from flatlm.runtime.format.graph import Graph, Node

from .function import Function, Operation

_BODY = """(position_ids, inverse_frequency) => (cos, sin) {
    position = Cast <to = 11> (position_ids)
    frequency = Cast <to = 11> (inverse_frequency)
    last = Constant <value_ints = [-1]> ()
    column = Unsqueeze (position, last)
    angle = Mul (column, frequency)
    cos_double = Cos (angle)
    sin_double = Sin (angle)
    cos = Cast <to = 1> (cos_double)
    sin = Cast <to = 1> (sin_double)
}"""


def operation(graph: Graph, node: Node) -> Operation:
    frequency = graph.array(node.inputs[1]).astype(np.float64)

    def rotary_table(positions: np.ndarray) -> tuple[np.ndarray, ...]:
        angle = positions[..., None] * frequency
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    return rotary_table


def body(node: Node) -> str:
    return _BODY


ROTARY_TABLE = Function("RotaryTable", operation, body=body)
