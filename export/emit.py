"""Integer nodes of docs/format.md: what a linear layer or an embedding becomes, with its constants.

Legend: n outputs, k inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flatlm.kernels_arm import layout
from flatlm.runtime.format import nested
from flatlm.runtime.format.functions import LINEAR, TOKEN_LINEAR
from flatlm.runtime.format.graph import Graph, Node, Tensor

from . import ops
from .ops.embedding import scale_of
from .ops.function import Operation
from .passes.flatten import FlatProduct, Flattening
from .passes.grid import PLANE, Grid, grid, planes
from .products import integer_linear


@dataclass(frozen=True, slots=True)
class Rounded:
    """A linear layer as integers."""

    integers: np.ndarray  # float32 [n, k]
    grid: Grid
    flattening: Flattening
    bias: np.ndarray  # float32 [n]

    @property
    def product(self) -> FlatProduct:
        return FlatProduct(self.integers, self.grid.steps, self.bias, self.flattening)

    def planes(self) -> tuple[Rounded, ...]:
        """The products that add up to the layer: itself, or of a nested one its high plane and its low."""
        if not self.grid.nested:
            return (self,)
        (high, low), steps = planes(self.integers), self.grid.steps
        return (
            replace(self, integers=high, grid=grid(4, PLANE * steps)),
            replace(self, integers=low, grid=grid(4, steps), bias=np.zeros_like(self.bias)),
        )

    def operation(self) -> tuple[Operation, bool]:
        """The layer, and whether a call of it keeps all cores busy."""
        found = [integer_linear(one.product) for one in self.planes()]
        products, busy = [product for product, _ in found], any(alone for _, alone in found)
        if len(products) == 1:
            return products[0], busy
        return lambda x: (np.sum([product(x)[0] for product in products], 0),), busy


def emit_linear(node: Node, rounded: Rounded, graph: Graph) -> None:
    """Appends the FlatLinear or FlatLinearToken that `node` becomes, with its constants.

    Of a nested layer the low plane follows as a node of its own; `nested.join` adds it up.
    """
    high, *low = rounded.planes()
    _emit_product(node, high, graph)
    for plane in low:
        name = nested.low(node.name)
        x, _, bias = node.inputs
        inputs, outputs = (x, f"{name}.weight", bias), tuple(map(nested.low, node.outputs))
        _emit_product(replace(node, inputs=inputs, outputs=outputs, name=name), plane, graph, node.name)


def _emit_product(node: Node, rounded: Rounded, graph: Graph, quantized_as: str | None = None) -> None:
    """quantized_as: the name of the node that reads the same integers."""
    weight, table = node.inputs[1], table_of(graph, node)
    flattening, matrix = rounded.flattening, PackedMatrix(rounded.integers, rounded.grid.bits)
    if table is None:
        graph.constants[weight] = matrix.tensor()
        graph.constants.update(matrix.excess(node.name))
    excess = table.inputs[-2:] if table else _names(node.name)
    arrays = {
        "scale": rounded.product.scale,
        "bias": rounded.bias,
    }
    of_inputs = {
        **({} if flattening.by_token else {"inverse_scale": np.array(flattening.inverse_scale)}),
        "limit": flattening.limit,
    }
    constants = {f"{node.name}.{role}": Tensor.of(array) for role, array in arrays.items()}
    constants |= {f"{quantized_as or node.name}.{role}": Tensor.of(a) for role, a in of_inputs.items()}
    graph.constants.update(constants)
    attrs = matrix.attributes | {"levels": flattening.levels}
    inputs = (node.inputs[0], weight, *constants, *excess)
    function = TOKEN_LINEAR if flattening.by_token else LINEAR
    graph.nodes.append(Node(function, inputs, node.outputs, attrs, node.name))


def table_of(graph: Graph, head: Node) -> Node | None:
    """The embedding whose matrix, integers and all, `head` shares."""
    return next((node for node in ops.tables(graph.nodes) if node.inputs[1] == head.inputs[1]), None)


def emit_embedding(node: Node, integers: np.ndarray, grid: Grid, graph: Graph) -> Node:
    """Appends the FlatEmbedding that `node` becomes, with its constants, and returns it."""
    (ids, weight), matrix = node.inputs, PackedMatrix(integers, grid.bits)
    graph.constants[weight] = matrix.tensor()
    scale = grid.steps.astype(np.float32) * scale_of(node)
    constants = {f"{node.name}.scale": Tensor.of(scale)} | matrix.excess(node.name)
    graph.constants.update(constants)
    made = Node("FlatEmbedding", (ids, weight, *constants), node.outputs, matrix.attributes, node.name)
    graph.nodes.append(made)
    return made


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """What a file holds of the integers [n, k] of a layer with weights of `bits`."""

    integers: np.ndarray
    bits: int

    def tensor(self) -> Tensor:
        """In the kernels' order."""
        data = layout.pack(self.integers, self.bits)
        rows, columns = self.integers.shape
        shape = layout.packed_shape(rows, columns, self.bits)
        if self.bits == 4:
            return Tensor("uint4", shape, data.reshape(-1))
        return Tensor("int8", shape, data.reshape(shape))

    def excess(self, layer: str) -> dict[str, Tensor]:
        """By name; empty arrays of 8 bits."""
        delta, value = np.zeros(0, np.uint8), np.zeros(0, np.int8)
        if self.bits == 4:
            delta, value = layout.encode_excess(self.integers.astype(np.int16))
        return dict(zip(_names(layer), (Tensor.of(delta), Tensor.of(value)), strict=True))

    @property
    def attributes(self) -> dict[str, int]:
        """Of the node that reads it."""
        rows, columns = self.integers.shape
        return {"rows": rows, "columns": columns, "offset": layout.offset_of(self.bits)}


def _names(layer: str) -> tuple[str, str]:
    return f"{layer}.excess_delta", f"{layer}.excess_value"


def copy(local: Graph, nodes: list[Node], graph: Graph) -> None:
    graph.nodes += nodes
    for name in (name for node in nodes for name in node.inputs if name in local.constants):
        graph.constants[name] = local.constants[name]
