"""Which nodes of a graph become records together: five patterns. What matches none runs by itself.

    norm + product                a Norm that only products read runs as they quantize their input
    gate + product                a Gated or an Activation likewise
    product + residual            a product whose output only an Add reads adds to the other summand in place
    norm + residual               a Norm likewise, of what nothing else reads
    append + attend               of a state that nothing else reads: one record writes into it, one attends;
                                  Rotates of the queries and of the keys before them are part of it

The groups are lowered in order, each at the place of its main node. That is allowed where nothing between
reads or overwrites what a node of the group does, which the conditions here make sure of. No group changes
a bit of any result.
"""

from __future__ import annotations

from dataclasses import replace

from flatlm.runtime import ops
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.lowering import Group
from flatlm.runtime.ops import activation, add, append, attend, clamped_gate, gated, norm, rotate

_TAKEN_IN = (norm.NAME, gated.NAME, activation.NAME, clamped_gate.NAME)  # by a product's quantization


def fuse(graph: Graph) -> list[Group]:
    """Every node in one group, but for norms and gates of several products: in the group of each."""
    neighbours = _Neighbours(graph)
    groups = [Group(node, _before(neighbours, node)) for node in graph.nodes]
    inside = {node.name for group in groups for node in group.before}
    groups = [group for group in groups if group.node.name not in inside]
    return _with_sums(graph, neighbours, groups)


class _Neighbours:
    """Who makes and who reads the values of a graph."""

    def __init__(self, graph: Graph) -> None:
        self._users = graph.users()
        self._makers = {name: node for node in graph.nodes for name in node.outputs}

    def users(self, name: str) -> list[Node]:
        return self._users.get(name, [])

    def maker(self, name: str) -> Node | None:
        return self._makers.get(name)

    def is_ragged(self, name: str) -> bool:
        """Whether something else than zeros may stand beyond the value's columns."""
        maker = self.maker(name)
        return maker is not None and ops.of(maker).TRAITS.ragged


def _before(neighbours: _Neighbours, node: Node) -> tuple[Node, ...]:
    """The nodes that run inside the group of `node`, in order."""
    if node.op == attend.NAME:
        return _attention(neighbours, node)
    maker = neighbours.maker(node.inputs[0])
    if maker is None or not ops.quantizes(node) or maker.op not in _TAKEN_IN:
        return ()
    summed = maker.op == norm.NAME  # to the end of the buffer's row
    if summed and neighbours.is_ragged(maker.inputs[0]):
        return ()
    alone = all(ops.quantizes(user) for user in neighbours.users(node.inputs[0]))
    return (maker,) if alone else ()


def _attention(neighbours: _Neighbours, node: Node) -> tuple[Node, ...]:
    """The Append whose whole state `node` alone reads, and before it the Rotates of queries and keys, if both
    are turned by the same table.
    """
    turned, kept = (neighbours.maker(name) for name in node.inputs[:2])
    if kept is None or kept.op != append.NAME or kept.outputs != node.inputs[1 : 1 + len(kept.outputs)]:
        return ()
    if any(neighbours.users(name) != [node] for name in kept.outputs):
        return ()
    key = neighbours.maker(kept.inputs[0])
    if turned is None or key is None or (turned.op, key.op) != (rotate.NAME, rotate.NAME):
        return (kept,)
    return (turned, key, kept) if key.inputs[1:] == turned.inputs[1:] else (kept,)


def _may_add(neighbours: _Neighbours, node: Node) -> bool:
    """A product; a Norm, which overwrites its input."""
    return ops.is_product(node) or (node.op == norm.NAME and neighbours.users(node.inputs[0]) == [node])


def _with_sums(graph: Graph, neighbours: _Neighbours, groups: list[Group]) -> list[Group]:
    """What adds in place: the other summand is there before it, and nothing else reads that after."""
    made = {name: i for i, group in enumerate(groups) for name in group.node.outputs}
    readers: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        for name in group.inputs:
            readers.setdefault(name, []).append(i)
    gone: set[int] = set()
    for i, group in enumerate(groups):
        users = neighbours.users(group.node.outputs[0])
        if not _may_add(neighbours, group.node) or [user.op for user in users] != [add.NAME]:
            continue
        (total,) = users
        stream = replace(group, add=total).other
        at = made[total.outputs[0]]
        later = [reader for reader in readers[stream] if reader > i and reader != at]
        if made[stream] < i and not later and not neighbours.is_ragged(stream):
            groups[i] = replace(group, add=total)
            made[total.outputs[0]] = i
            gone.add(at)
    return [group for i, group in enumerate(groups) if i not in gone]
