"""Parts: the columns of a stream as several streams, side by side in the order of `sizes`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Signature, Traits, misfit
from flatlm.runtime.format.values import Values, streams
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step

NAME, TRAITS = "Parts", Traits(ragged=True)

_SIZES = re.compile("[1-9][0-9]{0,8}( [1-9][0-9]{0,8})*", re.ASCII)


def sizes_of(attrs: Mapping[str, Attribute]) -> tuple[int, ...]:
    """Columns of each part; of what names none, as many parts as there are words."""
    text = str(attrs.get("sizes", ""))
    return tuple(map(int, text.split())) if _SIZES.fullmatch(text) else (1,) * len(text.split())


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    outputs = tuple(f"part_{i}" for i in range(len(sizes_of(attrs))))
    return Signature({"x": None}, outputs, {"sizes": Attr(str)}, overwritten=("x",))


def check(graph: Graph, node: Node) -> None:
    if not _SIZES.fullmatch(str(node.attrs["sizes"])):
        raise misfit(node, f"sizes are {node.attrs['sizes']!r}, not whole numbers with a space between two")


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    sizes = sizes_of(node.attrs)
    return streams(sum(sizes)), streams(*sizes)


def numpy(graph: Graph, node: Node) -> Operation:
    ends = np.cumsum(sizes_of(node.attrs))[:-1]

    def run(step: Step, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.split(x, ends, axis=-1))

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """No record: each part stands where its columns do."""
    node, first = group.node, 0
    for name, size in zip(node.outputs, sizes_of(node.attrs), strict=True):
        lowering.share(name, node.inputs[0], first)
        first += size
