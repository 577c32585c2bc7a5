"""The parts of a function of the format: what each module of this folder has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from flatlm.kernels_arm.records import Integers
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Signature, Traits
from flatlm.runtime.format.values import Value, Values
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.states import Description


class Step(Protocol):
    """What the numpy backend gives a function beside its inputs."""

    def append(self, name: str, *rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """The state of node `name` with these rows [m, …] at its end, all of its rows [t, …]."""
        ...

    def recall(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The state of node `name` that was kept last, float32 of this shape; zeros at first."""
        ...

    def keep(self, name: str, state: np.ndarray) -> None:
        """What `recall` gives in the next step."""
        ...


Operation = Callable[..., tuple[np.ndarray, ...]]  # (step, *computed inputs) → outputs, without a batch


class Function(Protocol):
    """One file: everything that the runtime knows of a function."""

    NAME: str
    TRAITS: Traits

    def signature(self, attrs: Mapping[str, Attribute]) -> Signature:
        """Inputs, outputs and attributes of a node with these attributes, which may be wrong ones."""
        ...

    def check(self, graph: Graph, node: Node) -> None:
        """FormatError where a node that fits the signature is wrong by itself."""
        ...

    def values(self, graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
        """What the node wants its computed inputs to be, which are `given`, and what it makes."""
        ...

    def numpy(self, graph: Graph, node: Node) -> Operation:
        """The node by its reference, constants at hand."""
        ...

    def lower(self, lowering: Lowering, group: Group) -> None:
        """Appends the records of a group whose node is of this function, and places what it computes."""
        ...


class Product(Function, Protocol):
    """A function that multiplies by packed weights."""

    def integers(self, graph: Graph, node: Node) -> Integers:
        """How the node's input becomes integers."""
        ...


class Stateful(Function, Protocol):
    """A function whose nodes have a state that outlives a step."""

    def state(self, graph: Graph, node: Node, values: Mapping[str, Value]) -> Description:
        """Which state the node has; `values` as `widths.values_of` gives them."""
        ...
