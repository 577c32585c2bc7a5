"""The K/V cache becomes int8: nodes that write or read it change their state, and it gains scales."""

from __future__ import annotations

from flatlm.export import ops
from flatlm.runtime.format.graph import Graph


def to_int8(graph: Graph) -> None:
    """In place; the constants stay."""
    nodes, cached = [], set()
    for node in graph.nodes:
        over_int8 = ops.of(node.op).over_int8
        made = over_int8(node) if over_int8 else node
        if over_int8:
            cached |= {*made.inputs, *made.outputs}
        nodes.append(made)
    graph.nodes = nodes
    for names in (graph.inputs, graph.outputs):
        names[:] = [one for name in names for one in (name, f"{name}_scale") if one == name or one in cached]
