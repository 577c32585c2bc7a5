"""Nested weights: an 8-bit matrix as two 4-bit planes, of which the high one is a model of its own.

    W · step = H · (16 · step) + L · step        L in −8 … 7, H with sparse excess

Both products read the same integers and are added up, so a nested layer is two nodes of the graph: NAME and
NAME.low. Where a product's only reader is the residual Add, the planes are added to the residual one after
the other:

    NAME → Add(residual) … NAME.low → Add          NAME, NAME.low → Add
"""

from __future__ import annotations

from dataclasses import replace

from flatlm.runtime import ops
from flatlm.runtime.format.functions import check_graph
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.format.widths import check_values
from flatlm.runtime.ops import add

_LOW = ".low"


def low(name: str) -> str:
    """The low plane's name, of a node or a value."""
    return name + _LOW


def layer_of(name: str) -> str:
    """The layer that a node is a plane of, or is."""
    return name.removesuffix(_LOW)


def is_low(node: Node) -> bool:
    return ops.is_product(node) and node.name.endswith(_LOW)


def join(graph: Graph) -> None:
    """In place: adds up the planes, whose low nodes follow their high ones unread so far."""
    users = graph.users()
    waiting: dict[str, Node] = {}  # low nodes by the output of the high one
    found: list[Node] = []
    for node in graph.nodes:
        if is_low(node):
            high = found.pop()
            (y,) = high.outputs
            if [user.op for user in users[y]] == [add.NAME]:
                found.append(high)
                waiting[y] = node
            else:
                found += [replace(high, outputs=(f"{y}.high",)), node, _sum(node, f"{y}.high", y)]
        elif node.op == add.NAME and (ready := [name for name in node.inputs if name in waiting]):
            plane, (z,) = waiting.pop(ready[0]), node.outputs
            found += [replace(node, outputs=(f"{z}.high",)), plane, _sum(plane, f"{z}.high", z)]
        else:
            found.append(node)
    assert not waiting, f"no Add takes {', '.join(waiting)}"
    graph.nodes = found


def high_plane(graph: Graph) -> Graph:
    """The 4-bit model inside: the same constants, but no low planes' nodes. `graph` itself where none are.

    FormatError where a node is named as a low plane and what is left without it is no model.
    """
    dropped = {node.outputs[0] for node in graph.nodes if is_low(node)}
    if not dropped:
        return graph
    renamed: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        if is_low(node):
            continue
        kept = [name for name in inputs if name not in dropped]
        if node.op == add.NAME and len(kept) == 1:
            renamed[node.outputs[0]] = kept[0]
        else:
            nodes.append(replace(node, inputs=inputs))
    inside = replace(graph, nodes=nodes, part="high plane")
    check_graph(inside)
    check_values(inside)
    return inside


def _sum(plane: Node, high: str, total: str) -> Node:
    return Node(add.NAME, (high, plane.outputs[0]), (total,), name=f"{plane.name}.sum")
