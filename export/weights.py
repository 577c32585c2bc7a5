"""Weights that are read when they are used, and what folds make of them: some rows, another order, scaled.

A fold is what export works into a weight so that the graph needs no node for it. None reads anything before
the constant is asked for; shapes are known from the checkpoint's header all the same.

Legend: n outputs, k inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.runtime.errors import SourceError

Rows = slice | np.ndarray  # of the first axis


@dataclass(frozen=True, slots=True)
class Weight:
    """`load()` gives a fresh float32 array of `shape`; `where` names what it is made of, for errors."""

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    where: str

    def rows(self, chosen: Rows) -> Weight:
        """Some rows, in their order or in that of an index."""
        if isinstance(chosen, np.ndarray) and np.array_equal(chosen, np.arange(self.shape[0])):
            return self
        count = len(range(self.shape[0])[chosen]) if isinstance(chosen, slice) else len(chosen)
        return self._made((count, *self.shape[1:]), lambda w: np.ascontiguousarray(w[chosen]))

    def scaled(self, factor: float | np.ndarray) -> Weight:
        """Every element times a number, or every row times its own of `factor` [n]."""
        if np.all(factor == 1):
            return self
        by_row = np.asarray(factor, np.float32).reshape(-1, *[1] * (len(self.shape) - 1))
        return self._made(self.shape, lambda w: w * by_row)

    def plus(self, number: float) -> Weight:
        """Norms that are stored as their distance from one."""
        return self._made(self.shape, lambda w: w + number)

    def transposed(self) -> Weight:
        """[k, n] → [n, k]; a vector stays as it is."""
        return self._made(self.shape[::-1], lambda w: np.ascontiguousarray(w.T))

    def reshaped(self, *shape: int) -> Weight:
        """The same elements in another shape; SourceError where their number differs."""
        if math.prod(shape) != math.prod(self.shape):
            raise self.misshaped(f"{math.prod(shape)} elements")
        return self._made(shape, lambda w: w.reshape(shape))

    def repeated(self, times: int) -> Weight:
        """The whole of it, `times` times one below the other."""
        return stack([self] * times)

    def applied_to(self, vector: Weight) -> Weight:
        """W [n, k] · v [k], summed in float64."""

        def product() -> np.ndarray:
            summed: np.ndarray = self.load().astype(np.float64) @ vector.load().astype(np.float64)
            return summed.astype(np.float32)

        return Weight(self.shape[:1], product, self.where)

    def added_to(self, other: Weight) -> Weight:
        """Elementwise, both of one shape."""
        return self._made(self.shape, lambda w: w + other.load())

    def mapped(
        self, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...] | None = None
    ) -> Weight:
        """What a function makes of it: −e^A of recurrences. `shape`: the result's, where it is another."""
        return self._made(shape or self.shape, lambda w: np.ascontiguousarray(function(w), np.float32))

    def require(self, shape: tuple[int, ...]) -> Weight:
        """Itself; SourceError unless its shape is the one that config.json implies."""
        if self.shape != shape:
            raise self.misshaped(str(list(shape)))
        return self

    def misshaped(self, implied: str) -> SourceError:
        return SourceError(
            f"{self.where} is {list(self.shape)}, config.json implies {implied}; "
            "the two are not of the same model"
        )

    def _made(self, shape: tuple[int, ...], fold: Callable[[np.ndarray], np.ndarray]) -> Weight:
        return Weight(shape, lambda: fold(self.load()), self.where)


def zeros(n: int) -> Weight:
    """A bias of zeros, where one of several linears has none."""
    return Weight((n,), lambda: np.zeros(n, np.float32), "zeros")


def ones(n: int) -> Weight:
    """Of a norm that has no weight."""
    return Weight((n,), lambda: np.ones(n, np.float32), "ones")


def stack(weights: Sequence[Weight]) -> Weight:
    """One below the other."""
    if len(weights) == 1:
        return weights[0]
    shape = (sum(weight.shape[0] for weight in weights), *weights[0].shape[1:])

    def load() -> np.ndarray:
        out, at = np.empty(shape, np.float32), 0
        for weight in weights:
            out[at : at + weight.shape[0]] = weight.load()
            at += weight.shape[0]
        return out

    return Weight(shape, load, weights[0].where)


def together(weights: Sequence[Weight]) -> Weight:
    """Of one shape, as one with an axis more: the experts of a layer."""
    shape = (len(weights), *weights[0].shape)

    def load() -> np.ndarray:
        out = np.empty(shape, np.float32)
        for at, weight in enumerate(weights):
            out[at] = weight.load()
        return out

    return Weight(shape, load, weights[0].where)


def alternate(weights: Sequence[Weight]) -> Weight:
    """Of each expert, outputs of one below those of another: [E, n, …] → [E, Σ n, …]."""
    first = weights[0].shape
    shape = (first[0], sum(weight.shape[1] for weight in weights), *first[2:])
    return Weight(
        shape, lambda: np.concatenate([weight.load() for weight in weights], axis=1), weights[0].where
    )


@dataclass(frozen=True, slots=True)
class Affine:
    """A linear layer of the checkpoint, W·x + b, or what folds make of it: W [n, k], b [n] or none."""

    weight: Weight
    bias: Weight | None = None

    def each(self, fold: Callable[[Weight], Weight]) -> Affine:
        """Weight and bias folded alike: outputs chosen, in another order or scaled."""
        return Affine(fold(self.weight), self.bias and fold(self.bias))

    def reading(self, shift: Weight | None) -> Affine:
        """What it does to x + shift, said of x: the bias of the norm before it goes into its own."""
        if shift is None:
            return self
        moved = self.weight.applied_to(shift)
        return Affine(self.weight, moved if self.bias is None else self.bias.added_to(moved))


def beside(parts: Sequence[Affine]) -> Affine:
    """One linear layer for several on one input, outputs side by side."""
    weight = stack([part.weight for part in parts])
    if all(part.bias is None for part in parts):
        return Affine(weight)
    return Affine(weight, stack([part.bias or zeros(part.weight.shape[0]) for part in parts]))
