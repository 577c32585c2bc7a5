"""What is decided for each layer on its way to integers, and what such a decision does to it.

`survey` and `measure` fill the decisions, a sweep over the model each; `quantize` reads them. Nothing here
looks at more than one layer with its block.

Legend: n outputs, k inputs, g key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flatlm.runtime.format.graph import Graph, Node, in_body

from . import ops
from .calibrate import Inputs, Moments
from .ops import is_router
from .ops.function import Env
from .passes import smooth
from .passes import split as splitting
from .passes.bits import Variant, Way
from .passes.flatten import Flattening, flatten, flatten_by_token
from .passes.grid import Grid, weight_grid
from .passes.split import Split
from .recipe import Recipe


@dataclass(frozen=True, slots=True)
class Decision:
    """Of one linear layer, or of the embedding. As it begins: nothing changes, nothing was measured."""

    split: Split | None = None
    smoothing: np.ndarray | None = None  # s [k], of the layer as it was split
    alpha: float | None = None  # by which s was made; None: not by the formula
    order: Split | None = None  # of the input channels, after smoothing
    flattenings: Mapping[int, Flattening] = field(default_factory=dict)  # by the weights' bits
    unexplained: float = 1.0  # see `sensitivity.unexplained`
    variants: Sequence[Variant] = ()  # what there is to choose from; none: no choice
    way: Way | None = None  # how the matrix is rounded, once that is chosen for all

    @property
    def kl(self) -> float | None:
        """Predicted for the chosen way, in nats; None where there was no choice."""
        return next((variant.kl for variant in self.variants if variant.way == self.way), None)


_NOTHING = Decision()


@dataclass
class Decisions:
    """All that the sweeps decided by one recipe, and what a later sweep needs of an earlier one."""

    recipe: Recipe
    layers: dict[str, Decision] = field(default_factory=dict)  # by the node's name
    keys: dict[str, np.ndarray] = field(default_factory=dict)  # by attention node: s [g, d/2]
    probes: list[Env] = field(default_factory=list)  # a few windows as each block reads them
    head_inputs: Moments | None = None  # where the head is tied and may get 4 bits

    def of(self, name: str) -> Decision:
        return self.layers.get(name, _NOTHING)

    def way(self, name: str) -> Way:
        """How the matrix of the node `name` is rounded; chosen for all before any is."""
        way = self.of(name).way
        assert way is not None, name
        return way

    def note(self, name: str, **changes: Any) -> None:
        """Decides on these fields of the layer's `Decision`."""
        self.layers[name] = replace(self.of(name), **changes)

    def measured(self, name: str, variants: Sequence[Variant]) -> None:
        """The layer leaves a choice. It moves to the end: `variants` are in the order of measuring."""
        self.layers[name] = replace(self.layers.pop(name, _NOTHING), variants=variants)

    @property
    def variants(self) -> dict[str, Sequence[Variant]]:
        """Of the layers that leave a choice, in an order that counts: sums over them are float."""
        return {name: one.variants for name, one in self.layers.items() if one.variants}


def transform(local: Graph, decided: Decisions) -> None:
    """Applies to the block's constants what was decided; the function stays the same."""
    for fold in smooth.folds(local):
        if (one := decided.of(fold.linear.name)).split is not None:
            splitting.apply(local, fold, one.split)
    for fold in smooth.folds(local):  # again: splitting adds channels
        one = decided.of(fold.linear.name)
        if one.smoothing is not None:
            smooth.apply(local, fold, one.smoothing)
        if one.order is not None:
            splitting.apply(local, fold, one.order)


@dataclass(frozen=True, slots=True)
class Matrix:
    """That of a linear layer or of the embedding, in its block, and the recipe that it is quantized by."""

    node: Node
    local: Graph
    recipe: Recipe

    @property
    def weight(self) -> np.ndarray:
        return self.local.array(self.node.inputs[1])

    @property
    def parts(self) -> list[slice]:
        return smooth.parts(self.node, self.local)

    @property
    def wide_share(self) -> float:
        """The share of the layer's input channels that flattening may widen."""
        node, recipe = self.node, self.recipe
        if not recipe.does("flatten"):
            return 0.0
        if is_router(node, self.local.nodes):
            return 1.0
        if recipe.activations == "token" and node.name.rpartition(".")[2] in recipe.two_digits:
            return 1.0
        makers = (ops.of(other.op) for other in self.local.nodes if node.inputs[0] in other.outputs)
        return min(1.0, recipe.wide_channels * next((maker.wide for maker in makers), 1.0))

    def flatten(self, inputs: Inputs, bits: int) -> Flattening:
        """How the layer with weights of `bits` quantizes such inputs."""
        levels = 127 if bits == 8 else self.recipe.low_levels
        if self.recipe.activations == "token":
            return flatten_by_token(inputs, levels, self.wide_share)
        return flatten(inputs.maxima * self.recipe.margin, levels, self.wide_share)

    def grid(self, way: Way) -> Grid:
        """That of its weights; outside the body every row has a step of its own."""
        body, (bits, sigma) = in_body(self.node.name), way
        per_row = self.recipe.weight_scale == "channel" or not body
        nested = self.recipe.nested and body and not is_router(self.node, self.local.nodes)
        return weight_grid(self.weight, self.parts, bits, per_row, sigma, nested)
