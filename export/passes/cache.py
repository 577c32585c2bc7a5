"""The K/V cache becomes int8: attention nodes change their function, inputs and outputs gain scales."""

from __future__ import annotations

from flatlm.export import ops
from flatlm.runtime.format.graph import Graph


def to_int8(graph: Graph) -> None:
    """In place; the constants stay."""
    nodes, cached = [], set()
    for node in graph.nodes:
        cache = ops.of(node.op).int8_cache
        made = cache.convert(node) if cache else node
        if cache:
            cached |= {*made.inputs, *made.outputs}
        nodes.append(made)
    graph.nodes = nodes
    for names in (graph.inputs, graph.outputs):
        names[:] = [one for name in names for one in (name, f"{name}_scale") if one == name or one in cached]
