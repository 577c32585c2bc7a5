"""The model as a graph: the one type that export builds and rewrites and that the runtime reads.

It knows nothing of files (see `onnx_reader`) and nothing of architectures.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

import numpy as np

from flatlm.kernels_arm import layout

Attribute = int | float | str


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
