"""Heads: the rows of one product as queries, keys and values, the heads apart.

Legend: B batch, T tokens of a call, h heads, g key/value heads, d head size, S draws.
"""

from __future__ import annotations

import numpy as np

from flatlm.runtime.format.graph import Graph, Node

from .function import Channels, Env, Function, Operation

_BODY = """<num_heads, kv_num_heads, head_size> (qkv) => (q, k, v) {
    first_axis = Constant <value_ints = [0]> ()
    h = Constant <value_int: int = @num_heads> ()
    g = Constant <value_int: int = @kv_num_heads> ()
    d = Constant <value_int: int = @head_size> ()
    h_1 = Unsqueeze (h, first_axis)
    g_1 = Unsqueeze (g, first_axis)
    d_1 = Unsqueeze (d, first_axis)
    all_heads = Constant <value_ints = [0, 0, -1]> ()
    heads_shape = Concat <axis = 0> (all_heads, d_1)
    tokens_first = Reshape (qkv, heads_shape)
    heads_first = Transpose <perm = [0, 2, 1, 3]> (tokens_first)
    numbers = Concat <axis = 0> (h_1, g_1, g_1)
    q, k, v = Split <axis = 1> (heads_first, numbers)
}"""

NAME = "Heads"


def sizes(node: Node) -> tuple[int, int, int]:
    """h, g, d."""
    h, g, d = (int(node.attrs[name]) for name in ("num_heads", "kv_num_heads", "head_size"))
    return h, g, d


def sizes_of(graph: Graph, value: str) -> tuple[int, int]:
    """Number and size of the heads of a value that a `Heads` made, or functions after it that keep both."""
    maker = next(node for node in graph.nodes if value in node.outputs)
    if maker.op != NAME:
        return sizes_of(graph, maker.inputs[0])
    h, g, d = sizes(maker)
    return (h if value == maker.outputs[0] else g), d


def operation(graph: Graph, node: Node) -> Operation:
    h, g, d = sizes(node)

    def apart(qkv: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = qkv.reshape(*qkv.shape[:2], h + 2 * g, d).transpose(0, 2, 1, 3)
        return tuple(np.split(rows, [h, h + g], axis=1))

    return apart


def backward(graph: Graph, node: Node, env: Env, *heads: np.ndarray) -> tuple[np.ndarray, ...]:
    rows = np.concatenate(heads, 2).transpose(0, 1, 3, 2, 4)  # [S, B, T, h + 2g, d]
    return (rows.reshape(*rows.shape[:3], -1),)


def body(node: Node) -> str:
    return _BODY


def origin(graph: Graph, node: Node, channels: Channels) -> Channels:
    h, g, d = sizes(node)
    first = dict(zip(node.outputs, (0, h * d, (h + g) * d), strict=True))[channels.value]
    return Channels(node.inputs[0], first + channels.index, (h + 2 * g) * d, channels.power)


def parts(node: Node, count: int) -> list[slice]:
    """q, k, v."""
    h, g, d = sizes(node)
    return [slice(0, h * d), slice(h * d, (h + g) * d), slice((h + g) * d, count)]


HEADS = Function(NAME, operation, backward, body, origin=origin, parts=parts)
