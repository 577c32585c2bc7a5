"""GPTQ: round a weight matrix column by column, spreading each error over the columns still to come.

Minimises ‖(W − Q) · X‖² for inputs X of Hessian H = X · Xᵀ (arXiv 2210.17323): with U the upper Cholesky
factor of H⁻¹, column j's error divided by U[j, j] is subtracted, times U[j, j+1:], from the rest.

The flattened problem needs no Hessian of its own. All columns that a channel was flattened into hold
the same weights, so their changes are tied and their inputs sum to the (quantized, saturated) channel:
the tied problem is exactly the plain one on X. Quantizing repeated columns one by one would instead
meet a singular H.
"""

from __future__ import annotations

import numpy as np

from .grid import Grid

BLOCK = 128


def gptq(
    weight: np.ndarray,
    hessian: np.ndarray,
    grid: Grid,
    damping: float,
    order: bool,
    drift: np.ndarray | None = None,
) -> np.ndarray:
    """weight float32 [n, k] and H = Xᵀ · X [k, k] of inputs X [m, k] → integers of the grid, float32 [n, k].

    damping: each element of H's diagonal grows by this share of itself. order: columns of large inputs first.
    drift: (Y − X)ᵀ · X of the inputs Y that the float model has there. Then ‖Y · Wᵀ − X · Qᵀ‖ is minimised:
    the weights first become W + W · drift · H⁻¹, the least squares solution, and are rounded from there.
    """
    n, k = weight.shape
    hessian = damped(hessian, damping)
    turn = np.argsort(-np.diag(hessian), kind="stable") if order else np.arange(k)
    upper = _inverse_factor(hessian[np.ix_(turn, turn)])
    work = weight[:, turn]
    if drift is not None:
        work = work + ((weight @ drift)[:, turn] @ upper.T) @ upper
    work = np.ascontiguousarray(work.T / grid.steps.astype(np.float32))  # [k, n], in steps
    integers = np.empty_like(work)
    for start in range(0, k, BLOCK):
        stop = min(start + BLOCK, k)
        errors = np.empty((stop - start, n), np.float32)
        for j in range(start, stop):
            np.clip(np.rint(work[j]), -grid.bound, grid.bound, out=integers[j])
            error = errors[j - start] = (work[j] - integers[j]) / upper[j, j]
            work[j + 1 : stop] -= np.multiply.outer(upper[j, j + 1 : stop], error)
        work[stop:] -= upper[start:stop, stop:].T @ errors
    result = np.empty_like(integers)
    result[turn] = integers
    return np.ascontiguousarray(result.T)


def damped(hessian: np.ndarray, damping: float) -> np.ndarray:
    """H with (1 + damping) · its diagonal, in float64; channels that are always zero get a one.

    GPTQ adds a share of the diagonal's mean. That mean may come from two channels of enormous inputs, and
    then nothing is left of the correlations between the others; here the result does not depend on smoothing.
    """
    hessian = np.array(hessian, np.float64)
    diagonal = np.einsum("ii->i", hessian)
    diagonal *= 1 + damping
    diagonal[diagonal <= 0] = 1.0
    return hessian


def _inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """U upper triangular float32 with Uᵀ · U = H⁻¹.

    With P the reversal, P·H·P = L·Lᵀ gives U = (P·L·P)⁻¹: one factorization and no inverse of H itself.
    """
    lower = np.linalg.cholesky(hessian[::-1, ::-1])
    return _inverse(np.ascontiguousarray(lower[::-1, ::-1])).astype(np.float32)


def _inverse(upper: np.ndarray) -> np.ndarray:
    """Of an upper triangular matrix, by halves: a sixth of the work of a general inverse."""
    k = len(upper)
    if k <= BLOCK:
        return np.triu(np.linalg.inv(upper))
    half = k // 2
    result = np.zeros_like(upper)
    result[:half, :half] = _inverse(upper[:half, :half])
    result[half:, half:] = _inverse(upper[half:, half:])
    result[:half, half:] = -(result[:half, :half] @ upper[:half, half:]) @ result[half:, half:]
    return result
