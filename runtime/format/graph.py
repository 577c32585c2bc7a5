"""The model as a graph: the one type that export builds and rewrites and that the runtime reads.

It knows nothing of files (see `onnx_reader`) and nothing of architectures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace

import numpy as np

from flatlm.kernels_arm import layout

Attribute = int | float | str

SOFT_CAP = "SoftCap"  # of logits: the one function that may follow the head

_LAYER = re.compile(r"layers\.(\d+)\.")


def layer_number(name: str) -> int | None:
    """3 of the node layers.3.mlp.down and of its constants; None of what belongs to no layer."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def within_layer(name: str) -> str:
    """What a node is called inside its layer: mlp.down of layers.3.mlp.down; others as they are."""
    found = _LAYER.match(name)
    return name[found.end() :] if found else name


def in_body(name: str) -> bool:
    """Whether a node or a constant belongs to a layer, and not to embedding, last norm or head."""
    return layer_number(name) is not None


@dataclass(frozen=True, slots=True)
class Node:
    """One call of a function of docs/format.md (or the standard operator `Add`)."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attribute] = field(default_factory=dict)
    name: str = ""  # hierarchical: layers.3.attention.qkv


@dataclass(frozen=True, slots=True)
class Tensor:
    """A constant. `uint4` data are flat uint8 bytes, two elements a byte, low nibble first."""

    dtype: str  # float32, int8, uint8, int32, int64, uint4
    shape: tuple[int, ...]
    data: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> Tensor:
        return cls(str(array.dtype), tuple(array.shape), array)


@dataclass
class Graph:
    """Nodes in execution order, and the constants they name (loaded on access while a model is exported)."""

    nodes: list[Node] = field(default_factory=list)
    constants: MutableMapping[str, Tensor] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    part: str = ""  # what of a file this is, where it is not all

    @property
    def head(self) -> Node:
        """The product that gives the logits: the last node, but for a SoftCap."""
        return self.nodes[self._head]

    @property
    def _head(self) -> int:
        return -2 if self.nodes[-1].op == SOFT_CAP and len(self.nodes) > 1 else -1

    def with_head(self, head: Node, constants: Mapping[str, Tensor]) -> Graph:
        """The same graph with another head, whose `constants` are added."""
        nodes = list(self.nodes)
        nodes[self._head] = head
        return replace(self, nodes=nodes, constants={**self.constants, **constants})

    @property
    def body(self) -> list[Node]:
        """The nodes from the first layer to the last: without embedding, last norm and head."""
        return self.nodes[self._body]

    @property
    def layers(self) -> list[list[Node]]:
        """The nodes of each layer, in order; one that is named after no layer stays with those before it."""
        groups: list[list[Node]] = []
        at = None
        for node in self.body:
            number = layer_number(node.name)
            if number is not None and number != at:
                groups.append([])
                at = number
            groups[-1].append(node)
        return groups

    @property
    def blocks(self) -> list[list[Node]]:
        """All nodes: those before the first layer, then of each layer, then after the last; none is empty."""
        body = self._body
        groups = [self.nodes[: body.start], *self.layers, self.nodes[body.stop :]]
        return [group for group in groups if group]

    @property
    def _body(self) -> slice:
        numbered = [i for i, node in enumerate(self.nodes) if in_body(node.name)]
        return slice(numbered[0], numbered[-1] + 1) if numbered else slice(0, 0)

    def array(self, name: str) -> np.ndarray:
        """The constant `name` in its logical shape (raw bytes for uint4)."""
        tensor = self.constants[name]
        return tensor.data if tensor.dtype == "uint4" else tensor.data.reshape(tensor.shape)

    def users(self) -> dict[str, list[Node]]:
        """Of every value and constant, the nodes that read it, in order."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                users.setdefault(name, []).append(node)
        return users

    def bits(self, weight: str) -> int:
        """4 or 8: of the packed weight `weight`."""
        return {"uint4": 4, "int8": 8}[self.constants[weight].dtype]

    def totals(self, node: Node) -> np.ndarray:
        """The integer weights of a FlatLinear or FlatEmbedding, int8 [rows, columns], excess included."""
        weight, excess = node.inputs[1], (self.array(name) for name in node.inputs[-2:])
        rows, columns = int(node.attrs["rows"]), int(node.attrs["columns"])
        return layout.totals_of(self.array(weight), rows, columns, self.bits(weight), *excess)
