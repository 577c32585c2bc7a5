"""GPTQ against the plain formulas, one column at a time with explicit inverses."""

from __future__ import annotations

import numpy as np
import pytest

from flatlm.export.passes.gptq import damped, gptq
from flatlm.export.passes.grid import Grid, round_weights, weight_grid


def brute_force(weight: np.ndarray, hessian: np.ndarray, grid: Grid, order: np.ndarray) -> np.ndarray:
    """Optimal brain quantization in a given order: after each column, the rest solves its least squares anew.

    With F the columns still free, removing column q costs the rest −e · [H_F⁻¹]_q / [H_F⁻¹]_qq, H_F inverted
    from scratch each time: nothing is shared with the Cholesky form under test.
    """
    work, result = weight.astype(np.float64).copy(), np.zeros(weight.shape)
    for i, q in enumerate(order):
        free = order[i:]
        inverse = np.linalg.inv(hessian[np.ix_(free, free)])
        integers = np.clip(np.rint(work[:, q] / grid.steps), -grid.bound, grid.bound)
        error = work[:, q] - integers * grid.steps
        work[:, free] -= np.outer(error / inverse[0, 0], inverse[0])
        result[:, q] = integers
    return result


def problem(n: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and the Hessian of correlated inputs of uneven size."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(4 * k, k)) @ rng.normal(size=(k, k)) * rng.uniform(0.1, 3, k)
    return rng.normal(size=(n, k)).astype(np.float32), inputs.T @ inputs


def loss(weight: np.ndarray, integers: np.ndarray, grid: Grid, hessian: np.ndarray) -> float:
    error = weight - integers * grid.steps[:, None]
    return float(np.einsum("nk,kl,nl->", error, hessian, error))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("k", [5, 17])
def test_equals_brute_force_column_by_column(k: int, bits: int, ordered: bool):
    weight, hessian = problem(6, k, seed=k)
    grid = weight_grid(weight, [slice(None)], bits, per_row=True, sigma=2.5)
    stable = damped(hessian, 0.01)
    order = np.argsort(-np.diag(stable), kind="stable") if ordered else np.arange(k)
    assert np.array_equal(
        gptq(weight, hessian, grid, 0.01, ordered), brute_force(weight, stable, grid, order)
    )


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    weight, hessian = problem(8, 50, seed=1)
    grid = weight_grid(weight, [slice(0, 3), slice(3, 8)], 4, per_row=False, sigma=2.5)
    whole = gptq(weight, hessian, grid, 0.01, True)
    for name, size in (("BLOCK", 7), ("LEAF", 3), ("ROWS", 5)):
        monkeypatch.setattr(f"flatlm.export.passes.gptq.{name}", size)
    assert np.array_equal(gptq(weight, hessian, grid, 0.01, True), whole)


def test_loses_less_than_rounding_to_nearest():
    weight, hessian = problem(32, 64, seed=2)
    grid = weight_grid(weight, [slice(None)], 4, per_row=True, sigma=2.5)
    plain = loss(weight, round_weights(weight, grid), grid, hessian)
    assert loss(weight, gptq(weight, hessian, grid, 0.01, True), grid, hessian) < 0.6 * plain


def test_weights_on_the_grid_stay_there():
    _, hessian = problem(4, 12, seed=3)
    integers = np.random.default_rng(3).integers(-119, 120, (4, 12)).astype(np.float32)
    grid = Grid(4, np.full(4, 0.25), 119)
    assert np.array_equal(gptq(integers * np.float32(0.25), hessian, grid, 0.01, True), integers)


def test_a_channel_that_is_always_zero_does_no_harm():
    weight, hessian = problem(4, 12, seed=4)
    hessian[3] = hessian[:, 3] = 0
    grid = weight_grid(weight, [slice(None)], 8, per_row=True, sigma=2.5)
    for damping in (0.01, 1e-6):
        assert np.isfinite(gptq(weight, hessian, grid, damping, True)).all()


def test_the_hessian_of_flattened_columns_with_tied_weights_is_the_plain_one():
    """What the docstring claims: pieces repeated in the Hessian, weights tied, give the loss on their sum."""
    rng = np.random.default_rng(5)
    pieces = rng.normal(size=(40, 7))
    source = np.array([0, 1, 1, 2, 3, 3, 3])
    error = rng.normal(size=(2, 4))
    summed = np.stack([pieces[:, source == c].sum(1) for c in range(4)], 1)
    tied = error[:, source]
    assert np.allclose(
        np.einsum("nk,kl,nl->n", tied, pieces.T @ pieces, tied),
        np.einsum("nk,kl,nl->n", error, summed.T @ summed, error),
    )
