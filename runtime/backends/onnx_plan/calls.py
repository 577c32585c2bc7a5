"""A call of a function while the plan is made: what it reads, and its nodes, both to be changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from flatlm.runtime.format.graph import Graph, Node

from .functions import maker, needed, parsed, read, renamed


@dataclass
class Call:
    """Of `node`, which the runtime reads as the file's node is. A rewrite changes all but the first three."""

    graph: Graph
    node: Node
    product: str  # the form of products: a key of products.PRODUCTS
    inputs: dict[str, str]  # of the function, in order → values of the model
    outputs: list[str]  # of the function
    nodes: list[onnx.NodeProto]
    kind: str = ""  # calls of one function of the file that are rewritten alike have the same
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # new constants of the model

    def replace(self, values: Sequence[str], text: str) -> None:
        """`values` come of the nodes `text`, or of nobody; what only the old nodes read goes."""
        at = [maker(self.nodes, value, self.node.op) for value in values]
        old = [node for number, node in enumerate(self.nodes) if number in at]
        kept = [node for node in self.nodes if node not in old]
        new = renamed(parsed(text), values)
        self.nodes = needed([*kept[: min(at)], *new, *kept[min(at) :]], self.outputs)

    def rewrite(self, text: str) -> None:
        """All nodes are those of `text`."""
        self.nodes = parsed(text)

    def take(self, name: str, value: str) -> None:
        """A new input `name`."""
        self.inputs[name] = value

    def give(self, name: str, array: np.ndarray) -> None:
        """A new input `name`, a constant of this call."""
        assert not any(name in node.output for node in self.nodes), (self.node.op, name)
        value = f"{self.node.name}.{name}"
        self.inputs[name], self.arrays[value] = value, array

    def drop_unread(self) -> None:
        """Inputs that no node reads any more."""
        wanted = set().union(*map(read, self.nodes))
        self.inputs = {name: value for name, value in self.inputs.items() if name in wanted}


Rewrite = Callable[[Call], None]
