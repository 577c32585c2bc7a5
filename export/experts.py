"""Layers of experts on their way to integers: each expert is a linear layer on the rows that go to it.

Only what all experts share is decided for all at once: the flattening of their inputs, the bits of their
weights. Every expert is rounded by itself; one that calibration never reached to the nearest integers.

Legend: E experts, n outputs and k inputs of one, B windows, T tokens, K experts of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flatlm.kernels_arm import expert_layout, layout
from flatlm.runtime.format.graph import Graph, Node, Tensor

from . import calibrate
from .calibrate import Inputs
from .decisions import Matrix
from .emit import Rounded
from .ops import of
from .ops.experts import read_by
from .ops.function import Env, Operation
from .recipe import Recipe

SAMPLE = 512  # tokens of which a layer is compared with the float one
CHOICE = 2  # the input of Experts that says who reads what


# ---------------------------------------------------------------------------------------------- as matrices
def matrix_of(node: Node, local: Graph, recipe: Recipe, number: int) -> Matrix:
    """That of one expert, as if it were a linear layer."""
    weight, bias = node.inputs[1], node.inputs[3]
    arrays = {weight: local.array(weight)[number], bias: local.array(bias)[number]}
    return _matrix(node, local.nodes, arrays, recipe)


def all_in_one(node: Node, local: Graph, recipe: Recipe) -> Matrix:
    """That of all experts one below the other, for what is decided for all."""
    weight, bias = local.array(node.inputs[1]), local.array(node.inputs[3])
    arrays = {
        node.inputs[1]: weight.reshape(-1, weight.shape[-1]),
        node.inputs[3]: bias.reshape(-1),
    }
    nodes = [other for other in local.nodes if not set(node.outputs) & set(other.inputs)]  # its parts are one
    return _matrix(node, nodes, arrays, recipe)


def _matrix(node: Node, nodes: list[Node], arrays: dict[str, np.ndarray], recipe: Recipe) -> Matrix:
    """Experts have a step a token and no planes, whatever the recipe."""
    linear = Node("Linear", (node.inputs[0], *arrays), node.outputs, {}, node.name)
    constants = {name: Tensor.of(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return Matrix(linear, Graph(nodes, constants), replace(recipe, activations="token", nested=False))


# ------------------------------------------------------------------------------------------- what they read
@dataclass(frozen=True, slots=True)
class Reads:
    """What a layer of experts reads, in all chunks of windows."""

    values: tuple[np.ndarray, ...]  # [B, T, k], or [B, T, K, k] of rows of their own
    choices: tuple[np.ndarray, ...]  # [B, T, K]
    experts: int

    @classmethod
    def of(cls, node: Node, envs: Sequence[Env], experts: int) -> Reads:
        x, choice = node.inputs[0], node.inputs[CHOICE]
        return cls(tuple(env[x] for env in envs), tuple(env[choice] for env in envs), experts)

    @property
    def counts(self) -> np.ndarray:
        """int64 [E]: how many rows go to each."""
        return np.bincount(
            np.concatenate([choice.reshape(-1) for choice in self.choices]), minlength=self.experts
        )

    def rows(self, number: int, most: int | None = None) -> np.ndarray:
        """float32 [m, k]: those that go to one expert, or about `most` of them, evenly spread."""
        parts = [
            x[choice == number] if x.ndim == choice.ndim + 1 else x[(choice == number).any(-1)]
            for x, choice in zip(self.values, self.choices, strict=True)
        ]
        rows = np.concatenate(parts)
        return rows[:: max(1, len(rows) // most)] if most else rows

    def of_most(self) -> np.ndarray:
        """The rows of the expert that has most."""
        return self.rows(int(self.counts.argmax()))

    def divided(self, s: np.ndarray) -> Reads:
        """As they are when expert e's inputs are divided by s[e], or all experts' by s [k]."""
        by_row = [s[choice] if s.ndim == 2 else s for choice in self.choices]
        values = tuple(x / one for x, one in zip(self.values, by_row, strict=True))
        return Reads(values, self.choices, self.experts)

    def inputs(self) -> Inputs:
        """Of all experts together."""
        return calibrate.inputs(self.values)


# ------------------------------------------------------------------------------------------------ as integers
def operation(rounded: Sequence[Rounded]) -> Operation:
    """What experts of these integers compute."""
    products = [one.product for one in rounded]

    def run(x: np.ndarray, choice: np.ndarray) -> tuple[np.ndarray, ...]:
        y = np.empty((*choice.shape, len(products[0].bias)), np.float32)
        for e, mine, own in read_by(x, choice):
            (y[mine],) = products[e].operation()(own)
        return (y,)

    return run


def error_of_experts(node: Node, local: Graph, integers: Operation, reads: Reads) -> float:
    """‖ŷ − y‖² / ‖y‖² of the outputs for some of what is read; y: in float."""
    every = -(-sum(choice[..., 0].size for choice in reads.choices) // SAMPLE) | 1
    exact, wrong, size = of(node.op).operation(local, node), 0.0, 0.0
    for x, choice in zip(reads.values, reads.choices, strict=True):
        (wanted,), (got,) = (run(x[:, ::every], choice[:, ::every]) for run in (exact, integers))
        wrong, size = wrong + float(np.sum((got - wanted) ** 2)), size + float(np.sum(wanted**2))
    return wrong / size if size else 0.0


def emit_experts(node: Node, rounded: Sequence[Rounded], graph: Graph) -> None:
    """Appends the FlatExperts that `node` becomes, with its constants."""
    first = rounded[0]
    bits, flattening, (n, k) = first.grid.bits, first.flattening, first.integers.shape
    packed = expert_layout.pack((one.integers for one in rounded), bits)
    shape = expert_layout.packed_shape(len(rounded), n, k, bits)
    weight = node.inputs[1]
    if bits == 4:
        graph.constants[weight] = Tensor("uint4", shape, packed.packed.reshape(-1))
    else:
        graph.constants[weight] = Tensor("int8", shape, packed.packed.reshape(shape))
    arrays = {
        "scale": np.stack([one.product.scale for one in rounded]),
        "bias": np.stack([one.bias for one in rounded]),
        "limit": flattening.limit,
        "excess_start": packed.starts,
        "excess_delta": packed.delta,
        "excess_value": packed.value,
    }
    constants = {f"{node.name}.{role}": Tensor.of(array) for role, array in arrays.items()}
    graph.constants.update(constants)
    inputs = (node.inputs[0], weight, node.inputs[CHOICE], *constants)
    attrs = {"rows": n, "columns": k, "offset": layout.offset_of(bits), "levels": flattening.levels}
    graph.nodes.append(
        Node("FlatExperts", inputs, node.outputs, {"experts": len(rounded), **attrs}, node.name)
    )


def experts_of(node: Node, local: Graph) -> int:
    """How many there are."""
    return int(local.constants[node.inputs[1]].shape[0])
