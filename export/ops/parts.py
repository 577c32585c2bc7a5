"""Parts: the columns of a stream as several streams."""

from __future__ import annotations

import numpy as np

from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.ops.parts import NAME, sizes_of

from .function import Channels, Env, Function, Operation


def operation(graph: Graph, node: Node) -> Operation:
    ends = np.cumsum(sizes_of(node.attrs))[:-1]
    return lambda x: tuple(np.split(x, ends, axis=-1))


def backward(graph: Graph, node: Node, env: Env, *parts: np.ndarray) -> tuple[np.ndarray, ...]:
    return (np.concatenate(parts, -1),)


def body(node: Node) -> str:
    sizes = sizes_of(node.attrs)
    outputs = ", ".join(f"part_{i}" for i in range(len(sizes)))
    return f"""<sizes> (x) => ({outputs}) {{
    columns = Constant <value_ints = [{", ".join(map(str, sizes))}]> ()
    {outputs} = Split <axis = -1> (x, columns)
}}"""


def origin(graph: Graph, node: Node, channels: Channels) -> Channels:
    sizes = sizes_of(node.attrs)
    first = sum(sizes[: node.outputs.index(channels.value)])
    return Channels(node.inputs[0], first + channels.index, sum(sizes))


def parts(node: Node, count: int) -> list[slice]:
    ends = np.cumsum(sizes_of(node.attrs)).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes_of(node.attrs), strict=True)]


PARTS = Function(NAME, operation, backward, body, origin=origin, parts=parts)
