"""Heads: the rows of one product as queries, keys and values, the heads apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Signature, Traits, misfit
from flatlm.runtime.format.values import Values, heads, streams
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = "Heads", Traits()
_SIGNATURE = Signature(
    {"qkv": None},
    ("q", "k", "v"),
    {"num_heads": Attr(int), "kv_num_heads": Attr(int), "head_size": Attr(int)},
    overwritten=("qkv",),
)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def _sizes(node: Node) -> tuple[int, int, int]:
    """Heads, key/value heads, columns of a head."""
    number, groups, size = (int(node.attrs[name]) for name in _SIGNATURE.attrs)
    return number, groups, size


def check(graph: Graph, node: Node) -> None:
    number, groups, size = _sizes(node)
    if number % groups or size % 2:
        raise misfit(node, f"{number} heads, {groups} key/value heads of size {size} do not divide")


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    number, groups, size = _sizes(node)
    made = (heads(number, size), heads(groups, size), heads(groups, size))
    return streams((number + 2 * groups) * size), made


def numpy(graph: Graph, node: Node) -> Operation:
    number, groups, size = _sizes(node)

    def run(step: Step, qkv: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = qkv.reshape(-1, number + 2 * groups, size)
        return rows[:, :number], rows[:, number : number + groups], rows[:, number + groups :]

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """No record: q, k and v stand side by side in the rows of qkv."""
    node, first = group.node, 0
    for name in node.outputs:
        lowering.share(name, node.inputs[0], first)
        number, size = lowering.values[name].size
        first += number * size
