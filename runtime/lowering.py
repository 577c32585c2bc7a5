"""What the functions of a graph become records with: buffers of values, states, and the records so far.

It knows no function; each lowers itself (`lower` of its module in runtime/ops).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flatlm.kernels_arm import layout, records
from flatlm.kernels_arm.expert_records import ExpertDigits
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.library import Library
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.format.signature import no_kernel
from flatlm.runtime.format.values import Value, are_of_experts
from flatlm.runtime.states import State


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that become records together, at the place of `node`."""

    node: Node
    before: tuple[Node, ...] = ()  # whose outputs none but this group reads, in order
    add: Node | None = None  # the sum that the node's output goes into and nowhere else

    @property
    def other(self) -> str:
        """The summand that the node's output is added to."""
        assert self.add is not None
        (other,) = (name for name in self.add.inputs if name not in self.node.outputs)
        return other

    @property
    def inputs(self) -> list[str]:
        """What is read from outside the group, constants included."""
        nodes = (*self.before, self.node, *([self.add] if self.add else []))
        made = {name for node in nodes for name in node.outputs}
        return list(dict.fromkeys(name for node in nodes for name in node.inputs if name not in made))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands: in columns of a buffer, float32 [tokens, width], from `first` on."""

    buffer: np.ndarray
    first: int = 0

    @property
    def array(self) -> np.ndarray:
        return self.buffer[:, self.first :] if self.first else self.buffer


class Lowering:
    """One pass over the groups of a graph."""

    def __init__(
        self,
        graph: Graph,
        values: Mapping[str, Value],
        states: Mapping[str, State],
        products: Mapping[str, records.Integers],
        kernels: Library,
        *,
        context: int,
        batch: int,
        logit_rows: int,
    ) -> None:
        self.graph, self.values, self.states, self.kernels = graph, values, states, kernels
        self.products = products  # how their inputs become integers, by the name of the node
        self.batch, self.logit_rows = batch, logit_rows
        self.context = max(context, *(state.context for state in states.values()))  # of the longest state
        self.records: list[np.ndarray] = []
        self.names: list[str] = []  # the node of each record
        self.keep: list[np.ndarray] = []  # what the records point to
        self.tables: dict[str, int] = {}  # addresses of rotary tables, float32 [context, d/2]
        self.experts: ExpertDigits | None = None  # what products of experts share among layers
        self.shared: dict[str, int] = {}  # addresses of what int8 attention shares among layers
        self.scratch = 0  # bytes that a thread needs
        self.digits = records.digit_buffers(batch, products.values(), self.keep)
        self.quantized: tuple[object, ...] = ()  # what stands in the buffers of digits
        self._places: dict[str, Place] = {}
        self._pool: dict[tuple[int, ...], list[np.ndarray]] = {}

    def array(self, name: str) -> np.ndarray:
        """Where value `name` stands, float32 [tokens, at least its columns]."""
        return self._places[name].array

    def rows(self, name: str, columns: int, rows: int | None = None) -> np.ndarray:
        """A buffer for value `name`, reused from the pool if one of the size is free."""
        width = padded(columns, layout.ROWS) + layout.ROWS  # a vector may be read past the end of a half
        shape = rows or self.batch, width
        free = self._pool.get(shape)
        buffer = free.pop() if free else records.zeros(self.keep, shape)
        self._places[name] = Place(buffer)
        return buffer

    def share(self, name: str, other: str, first: int = 0) -> np.ndarray:
        """Value `name` stands where `other` does, from its column `first` on."""
        place = self._places[other]
        self._places[name] = Place(place.buffer, place.first + first)
        return self._places[name].array

    def apart(self, name: str, other: str) -> int | None:
        """Columns from value `name` to value `other`; None where they stand in different buffers."""
        first, second = self._places[name], self._places[other]
        return second.first - first.first if first.buffer is second.buffer else None

    def release(self, name: str) -> None:
        """No group reads value `name` any more: its buffer is free once no other value stands in it."""
        if name in self._places:
            buffer = self._places.pop(name).buffer
            if not any(place.buffer is buffer for place in self._places.values()):
                self._pool.setdefault(buffer.shape, []).append(buffer)

    def held(self, array: np.ndarray, dtype: type) -> int:
        """The address of a constant."""
        return records.held(self.keep, array, dtype)

    def add(self, node: Node, row: np.ndarray) -> None:
        self.records.append(row)
        self.names.append(node.name)

    def need(self, scratch: int) -> None:
        self.scratch = max(self.scratch, scratch)


def require_stream(lowering: Lowering, node: Node) -> None:
    """FormatError where `node` makes rows of experts, which only their next product has kernels for."""
    if are_of_experts(lowering.values[node.outputs[0]]):
        raise no_kernel(node, "what is made of experts' rows and not read by their next product alone")
