"""Flattening of weights: integers on one step for a tensor or a row, the few large ones as sparse excess.

4-bit weights have a step of σ · k / 7.5, so about 1 % of a row's elements fall outside −8…7 (k = 2.5). Their
total, up to ±119 on the same step, is kept sparsely (docs/format.md); rounding and GPTQ see one wide grid.
8-bit weights have no excess: the step covers the largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels_arm import layout

_HALF = {4: 7.5, 8: 127.0}  # steps from zero to the threshold


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the weights of one linear layer may lie: row r at integers × steps[r], |integer| ≤ bound."""

    bits: int
    steps: np.ndarray  # float64 [n]
    bound: int

    def rows(self, start: int, stop: int) -> Grid:
        return Grid(self.bits, self.steps[start:stop], self.bound)


def weight_grid(weight: np.ndarray, parts: list[slice], bits: int, per_row: bool, sigma: float) -> Grid:
    """The grid of `weight` [n, k], whose row ranges `parts` are tensors of their own.

    per_row: every row its own step, else one step for each part. sigma: for 4 bits, the threshold beyond
    which an element becomes excess, in standard deviations (root mean squares) of the row or tensor.
    """
    steps = np.empty(len(weight))
    for part in parts:
        rows = weight[part]
        reach = np.abs(rows).max(1)
        if bits == 4:
            rms = np.sqrt(np.einsum("nk,nk->n", rows, rows, dtype=np.float64) / rows.shape[1])
        if not per_row:
            reach = np.full(len(rows), reach.max())
            rms = np.full(len(rows), np.sqrt(np.mean(rms**2))) if bits == 4 else None
        if bits == 4:  # not so fine that the largest total leaves the format
            steps[part] = np.maximum(np.minimum(sigma * rms, reach) / _HALF[4], reach / layout.MAX_TOTAL)
        else:
            steps[part] = reach / _HALF[8]
    return Grid(bits, np.where(steps > 0, steps, 1.0), layout.MAX_TOTAL if bits == 4 else 127)


def round_weights(weight: np.ndarray, grid: Grid) -> np.ndarray:
    """The nearest integers of the grid, float32 [n, k]."""
    integers = np.rint(weight / grid.steps[:, None].astype(np.float32))
    return np.clip(integers, -grid.bound, grid.bound, out=integers)


def excess_share(integers: np.ndarray, bits: int) -> float:
    """Share of the elements whose total is outside the 4-bit plane."""
    if bits == 8:
        return 0.0
    return float(np.mean((integers < layout.INT4_LOW) | (integers > layout.INT4_HIGH)))
