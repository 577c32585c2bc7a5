"""Constants that are read when they are asked for: a 1.5B model in float32 is 6 GB, one layer is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.runtime.format.graph import Graph, Node, Tensor


@dataclass(frozen=True, slots=True)
class Lazy:
    """A float32 constant by the way to get it."""

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


class LazyConstants(MutableMapping[str, Tensor]):
    """Name → Tensor, as `Graph.constants`. Nothing is cached: every access of a lazy constant reads it anew.

    A Tensor that a pass assigns is kept as it is and takes the lazy one's place.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Tensor | Lazy] = {}

    def define(self, name: str, shape: tuple[int, ...], load: Callable[[], np.ndarray]) -> None:
        """Adds a constant that `load()` gives as float32 of `shape`."""
        self._entries[name] = Lazy(shape, load)

    def shape(self, name: str) -> tuple[int, ...]:
        """The constant's shape, without reading it."""
        return self._entries[name].shape

    def copy(self) -> LazyConstants:
        """Another mapping over the same constants; assigning to one leaves the other alone."""
        other = LazyConstants()
        other._entries.update(self._entries)
        return other

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        return Tensor("float32", entry.shape, entry.load()) if isinstance(entry, Lazy) else entry

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._entries[name] = tensor

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:  # the mixin's would read the constant
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def load(graph: Graph, nodes: Sequence[Node], without: str | None = None) -> Graph:
    """The nodes with their constants in memory, as a graph of its own that passes may change.

    The constant `without` is not read.
    """
    names = {name for node in nodes for name in node.inputs if name in graph.constants and name != without}
    return Graph(list(nodes), {name: graph.constants[name] for name in names})


def shape_of(graph: Graph, name: str) -> tuple[int, ...]:
    """A constant's shape, without reading a lazy one."""
    constants = graph.constants
    return constants.shape(name) if isinstance(constants, LazyConstants) else constants[name].shape
