"""GPTQ: round a weight matrix column by column, spreading each error over the columns still to come.

Minimises ‖(W − Q) · X‖² for inputs X of Hessian H = X · Xᵀ (arXiv 2210.17323). The paper spreads errors by
the Cholesky factor of H⁻¹; here it is H's own, with the columns in the opposite order. With H = M · D · Mᵀ, M
unit lower triangular, ‖(W − Q) · M · √D‖² is made small from the last column to the first: when column i has
been rounded with error e, the targets of all j < i move by e · M[i, j] (Babai's nearest plane; the two are
one, arXiv 2507.18553). Nothing is inverted, and the columns to be rounded first are put last.

The flattened problem needs no Hessian of its own. All columns that a channel was flattened into hold
the same weights, so their changes are tied and their inputs sum to the (quantized, saturated) channel:
the tied problem is exactly the plain one on X. Quantizing repeated columns one by one would instead
meet a singular H.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flatlm.export.parallel import each

from .grid import Grid

BLOCK = 256  # columns of a panel of the factor
LEAF = 8  # columns rounded one by one before their errors go on as a matrix product
ROWS = 768  # rows of W at a time: they are independent of each other


@dataclass(frozen=True, slots=True)
class Factor:
    """H = M · D · Mᵀ. Only what is below the diagonal of `lower` is M's."""

    lower: np.ndarray  # float32 [k, k]
    pivots: np.ndarray  # D, float32 [k]


def gptq(
    weight: np.ndarray,
    hessian: np.ndarray,
    grid: Grid,
    damping: float,
    order: bool,
    dtype: type = np.float32,
) -> np.ndarray:
    """weight float32 [n, k] and H = Xᵀ · X [k, k] of inputs X [m, k] → integers of the grid, `dtype` [n, k].

    damping: each element of H's diagonal grows by this share of itself. order: columns of large inputs first.
    """
    hessian = damped(hessian, damping)
    first = np.argsort(-np.diag(hessian), kind="stable") if order else np.arange(len(hessian))
    turn = first[::-1]
    found = factor(hessian, turn)
    integers: np.ndarray = np.empty(weight.shape, dtype)

    def part(start: int) -> None:
        rows = slice(start, start + ROWS)
        steps = grid.steps[rows].astype(np.float32)
        work = np.ascontiguousarray(weight[rows].T)[turn] / steps  # [k, rows]
        rounded = np.empty_like(work)
        rounded[turn] = _round(found.lower, work, grid.bound)
        integers[rows] = rounded.T

    each(part, range(0, len(weight), ROWS))
    return integers


def damped(hessian: np.ndarray, damping: float) -> np.ndarray:
    """H with (1 + damping) · its diagonal, a copy; channels that are always zero get a one.

    GPTQ adds a share of the diagonal's mean. That mean may come from two channels of enormous inputs, and
    then nothing is left of the correlations between the others; here the result does not depend on smoothing.
    """
    hessian = np.array(hessian)
    diagonal = np.einsum("ii->i", hessian)
    diagonal *= 1 + damping
    diagonal[diagonal <= 0] = 1.0
    return hessian


def factor(hessian: np.ndarray, turn: np.ndarray) -> Factor:
    """Of H [k, k] with rows and columns in the order `turn`; in H's precision, or double where that fails."""
    try:
        return _factor(hessian[turn][:, turn])
    except np.linalg.LinAlgError:
        return _factor(hessian[turn][:, turn].astype(np.float64))


def _factor(work: np.ndarray) -> Factor:
    """Panel by panel, in place: nearly all of it is matrix products."""
    k = len(work)
    pivots = np.empty(k, work.dtype)
    for start in range(0, k, BLOCK):
        stop = min(start + BLOCK, k)
        panel = work[start:, start:stop]
        panel -= work[start:, :start] @ (work[start:stop, :start] * pivots[:start]).T
        lower = np.linalg.cholesky(panel[: stop - start].astype(np.float64))
        roots = np.diag(lower)
        pivots[start:stop] = roots**2
        unit = lower / roots
        inverse = np.linalg.inv(unit)
        panel[: stop - start] = unit
        panel[stop - start :] = (panel[stop - start :] @ inverse.T.astype(work.dtype)) / pivots[start:stop]
    return Factor(work.astype(np.float32, copy=False), pivots.astype(np.float32, copy=False))


def _round(lower: np.ndarray, work: np.ndarray, bound: int) -> np.ndarray:
    """work [k, rows]: the weights in steps, and then their errors. target: where they are rounded from."""
    integers, target = np.empty_like(work), work.copy()

    def go(start: int, stop: int) -> None:
        if stop - start > LEAF:
            middle = (start + stop) // 2
            go(middle, stop)
            target[start:middle] += lower[middle:stop, start:middle].T @ work[middle:stop]
            go(start, middle)
            return
        for j in reversed(range(start, stop)):
            np.clip(np.rint(target[j], out=integers[j]), -bound, bound, out=integers[j])
            work[j] -= integers[j]  # the error
            target[start:j] += np.multiply.outer(lower[j, start:j], work[j])

    go(0, len(work))
    return integers
