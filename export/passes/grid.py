"""Flattening of weights: integers on one step for a tensor or a row, the few large ones as sparse excess.

4-bit weights have a step of σ · k / 7.5, so about 1 % of a row's elements fall outside −8…7 (k = 2.5). Their
total, up to ±119 on the same step, is kept sparsely (docs/format.md); rounding and GPTQ see one wide grid.
8-bit weights have no excess, the step covers the largest; but for nested ones, which have the 4-bit grid with
a sixteenth of its step, and excess in the high plane.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flatlm.kernels_arm import layout

_HALF = {4: 7.5, 8: 127.0}  # steps from zero to the threshold
PLANE = 16  # steps of the low plane of a nested grid in one of the high plane


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the weights of one linear layer may lie: row r at integers × steps[r], |integer| ≤ bound."""

    bits: int
    steps: np.ndarray  # float64 [n]
    bound: int
    nested: bool = False  # of 8 bits as two planes of 4, so that the high one is a grid of its own

    def rows(self, start: int, stop: int) -> Grid:
        return replace(self, steps=self.steps[start:stop])


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a grid per tensor needs to know of the tensor: the sizes of its columns."""

    peak: np.ndarray  # largest |w|, [k]
    square: np.ndarray  # mean of w², [k]

    @classmethod
    def of(cls, rows: np.ndarray) -> Sizes:
        square = np.einsum("nk,nk->k", rows, rows) / len(rows)
        return cls(np.maximum(rows.max(0), -rows.min(0)), square)

    def scaled(self, s: np.ndarray) -> Sizes:
        return Sizes(self.peak * s, self.square * s**2)

    def step(self, bits: int, sigma: float) -> float:
        reach, rms = self.peak.max(keepdims=True), np.sqrt(self.square.mean(keepdims=True, dtype=np.float64))
        return float(_steps(reach, rms, bits, sigma)[0])


def weight_grid(
    weight: np.ndarray, parts: list[slice], bits: int, per_row: bool, sigma: float, nested: bool = False
) -> Grid:
    """The grid of `weight` [n, k], whose row ranges `parts` are tensors of their own.

    per_row: every row its own step, else one step for each part. sigma: for 4 bits, the threshold beyond
    which an element becomes excess, in standard deviations (root mean squares) of the row or tensor. nested:
    8 bits are 4 bits' grid, divided by 16.
    """
    if nested and bits == 8:
        return refined(weight_grid(weight, parts, 4, per_row, sigma))
    if not per_row:
        steps = np.empty(len(weight))
        for part in parts:
            steps[part] = Sizes.of(weight[part]).step(bits, sigma)
        return grid(bits, steps)
    reach = np.maximum(weight.max(1), -weight.min(1))
    rms = np.sqrt(np.einsum("nk,nk->n", weight, weight) / np.float64(weight.shape[1]))
    return grid(bits, _steps(reach, rms, bits, sigma))


def refined(coarse: Grid) -> Grid:
    """The nested grid whose high plane lies on a `coarse` one of 4 bits."""
    return Grid(8, coarse.steps / PLANE, coarse.bound * PLANE, nested=True)


def grid(bits: int, steps: np.ndarray) -> Grid:
    return Grid(bits, steps, layout.MAX_TOTAL if bits == 4 else 127)


def _steps(reach: np.ndarray, rms: np.ndarray, bits: int, sigma: float) -> np.ndarray:
    """4 bits: not so fine that the largest total leaves the format. A row of zeros has a step of one."""
    reach = reach.astype(np.float64)
    if bits == 8:
        steps = reach / _HALF[8]
    else:
        steps = np.maximum(np.minimum(sigma * rms, reach) / _HALF[4], reach / layout.MAX_TOTAL)
    return np.where(steps > 0, steps, 1.0)


def round_weights(weight: np.ndarray, grid: Grid) -> np.ndarray:
    """The nearest integers of the grid, float32 [n, k]."""
    integers = np.rint(weight / grid.steps[:, None].astype(np.float32))
    return np.clip(integers, -grid.bound, grid.bound, out=integers)


def planes(integers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers of a nested grid → (high, low): 16 · high + low, low in −8 … 7."""
    high = np.floor((integers - layout.INT4_LOW) / PLANE)
    return high, integers - PLANE * high


def excess_share(integers: np.ndarray, grid: Grid) -> float:
    """Share of the elements whose total is outside the (high) 4-bit plane."""
    if grid.nested:
        integers = planes(integers)[0]
    elif grid.bits == 8:
        return 0.0
    return float(np.mean((integers < layout.INT4_LOW) | (integers > layout.INT4_HIGH)))
