"""The K/V cache becomes int8: attention nodes change their function, inputs and outputs gain scales."""

from __future__ import annotations

from collections.abc import Iterable

from flatlm.runtime.format.graph import Graph, Node

ATTENTION, INT8_ATTENTION = "RotaryAttention", "RotaryAttentionInt8"


def to_int8(graph: Graph) -> None:
    """In place; the constants stay."""
    graph.nodes = [_converted(node) if node.op == ATTENTION else node for node in graph.nodes]
    cached = {
        name for node in graph.nodes if node.op == INT8_ATTENTION for name in (*node.inputs, *node.outputs)
    }
    for names in (graph.inputs, graph.outputs):
        names[:] = [one for name in names for one in (name, f"{name}_scale") if one == name or one in cached]


def _converted(node: Node) -> Node:
    inputs = (*node.inputs[:3], *_with_scales(node.inputs[3:]))
    outputs = (node.outputs[0], *_with_scales(node.outputs[1:]))
    return Node(INT8_ATTENTION, inputs, outputs, node.attrs, node.name)


def _with_scales(names: Iterable[str]) -> list[str]:
    return [one for name in names for one in (name, f"{name}_scale")]
