"""What every way to round a layer would cost at the end: bytes, and KL divergence predicted from gradients.

The error of a layer's output has two parts. That of the weights, E [n, k], is independent between rows: row r
moves the log likelihood by E[r] · G[r], G = gᵀ · X, so the KL is ½ Σ_r (E[r] · G[r])². GPTQ makes it smaller
than rounding to nearest, by about the share of the inputs' variance that is left when each channel is
predicted from those still to be rounded (`unexplained`). That of the inputs, ε, is independent between their
elements, which see the gradient g · W: ½ Σ (ε · (g · W))². Both are divided by the number of predicted
positions.

Legend: n outputs, k inputs, S draws, B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.kernels_arm import layout
from flatlm.kernels_arm.layout import padded
from flatlm.runtime.format.graph import Graph

from . import execute
from .gradients import Gradients, backward, draw
from .ops.function import Env
from .parallel import each
from .passes.bits import Variant, Way
from .passes.flatten import Flattening, rounded
from .passes.gptq import damped, factor
from .passes.grid import Grid, excess_share, round_weights, weight_grid
from .probabilities import log_softmax
from .recipe import Recipe

DRAWS = 2  # with 500 positions and the rows of a layer, predictions vary by a few per cent
CHANNELS = 4096  # on which `unexplained` is measured, of more
EXCESS_BYTES = 2.16  # an excess element with its share of fillers, at 1 % of the elements
GPTQ_EXCESS = 1.06  # of the excess when rounded to nearest: weights move by the errors of others
_CHUNK = 1 << 18  # weights rounded at a time, so that they stay in the cache


@dataclass(frozen=True, slots=True)
class Moved:
    """How one way to round a matrix moves the log likelihood."""

    square: float  # Σ_r (E[r] · G[r])², over all draws
    excess: float  # share of the elements


def ways(recipe: Recipe) -> list[Way]:
    return [(4, sigma) for sigma in dict.fromkeys((recipe.sigma, *recipe.sigmas))] + [(8, recipe.sigma)]


def start(last: Graph, probe: Env) -> Gradients:
    """Runs norm and head on the probe and draws: the gradients of the logits and of all before."""
    execute.run(execute.prepare(last, last.nodes), probe)
    gradients = {last.nodes[-1].outputs[0]: draw(log_softmax(probe["logits"]), DRAWS)}
    backward(last, last.nodes, probe, gradients)
    return gradients


def by_weights(weight: np.ndarray, y: np.ndarray, x: np.ndarray, grids: Sequence[Grid]) -> list[Moved]:
    """Of a linear layer that reads x [B, T, k], with gradients y [S, B, T, n] of its outputs, by grid."""
    x = x.reshape(-1, x.shape[-1])
    y = y.reshape(len(y), len(x), -1)
    step = max(1, _CHUNK // weight.shape[1])

    def part(start: int) -> list[tuple[float, float]]:
        rows = slice(start, start + step)
        of_weight = [np.ascontiguousarray(one[:, rows].T) @ x for one in y]
        return [_moved(weight[rows], of_weight, grid.rows(rows.start, rows.stop)) for grid in grids]

    sums = np.sum(each(part, range(0, len(weight), step)), 0)
    return [Moved(float(square), float(excess) / weight.size) for square, excess in sums]


def _moved(weight: np.ndarray, of_weight: Sequence[np.ndarray], grid: Grid) -> tuple[float, float]:
    integers = round_weights(weight, grid)
    excess = excess_share(integers, grid) * integers.size
    integers *= grid.steps[:, None].astype(np.float32)
    integers -= weight
    moved = [np.einsum("nk,nk->n", integers, one) for one in of_weight]
    return float(np.vdot(moved, moved)), excess


def by_inputs(x: np.ndarray, gradient: np.ndarray, flattening: Flattening) -> float:
    """Σ (ε · (g · W))² over x [B, T, k] and its gradient g · W [S, B, T, k]."""
    moved = gradient * (rounded(x, flattening) - x)
    return float(np.vdot(moved, moved))


def unexplained(x: np.ndarray, s: np.ndarray, damping: float) -> float:
    """Of inputs x [m, k] divided by s [k]: the share of their variance that GPTQ cannot pass on.

    D of `gptq.Factor` beside H's diagonal: what rounding all channels with one step leaves, and what it
    costs. Of very many channels an evenly spread part is taken, which overstates the share a little.
    """
    some = slice(None, None, -(-x.shape[1] // CHANNELS))
    x = x[:, some] / s[some]
    hessian = damped(x.T @ x, damping)
    diagonal = np.diag(hessian)
    pivots = factor(hessian, np.argsort(-diagonal, kind="stable")[::-1]).pivots
    return float(pivots.sum(dtype=np.float64) / diagonal.sum(dtype=np.float64))


def variants(
    shape: tuple[int, int],
    tables: int,
    moved: Sequence[Moved],
    inputs: Mapping[int, float],
    positions: int,
    recipe: Recipe,
) -> list[Variant]:
    """shape: n, k; tables: bytes beside the weights; moved: of each of `ways`, `unexplained` taken into
    account; inputs: `by_inputs` by the weights' bits; positions: predicted ones times draws."""
    found = []
    growth = GPTQ_EXCESS if recipe.does("gptq") else 1.0
    for (bits, sigma), one in zip(ways(recipe), moved, strict=True):
        own = matrix_bytes(shape, None if bits == 8 else growth * one.excess)
        found.append(Variant(bits, sigma, tables + own, (one.square + inputs[bits]) / (2 * positions)))
    return found


def matrix_bytes(shape: tuple[int, int], excess: float | None) -> float:
    """Of the weights of a matrix [n, k] in the artifact: 4 bits with this share of excess; None: 8 bits."""
    n, k = shape
    plane = padded(n, layout.ROWS) * padded(k, layout.COLUMNS)
    return plane if excess is None else plane / 2 + EXCESS_BYTES * excess * n * k


def positions(y: np.ndarray) -> int:
    """Of gradients [S, B, T, ·]: the first position of a window is not predicted."""
    windows, length = y.shape[0] * y.shape[1], y.shape[2]
    return int(windows * (length - 1))


def of_embedding(table: np.ndarray, ids: np.ndarray, y: np.ndarray, tried: Sequence[Way]) -> list[float]:
    """Σ (E[id] · g)² of the rows that ids [B, T] read, by element; y [S, B, T, k] are the gradients."""
    rows, where = np.unique(ids, return_inverse=True)
    weight = table[rows]
    of_row = np.zeros((len(y), len(rows), y.shape[-1]), np.float32)
    for total, one in zip(of_row, y, strict=True):
        np.add.at(total, where.reshape(-1), one.reshape(-1, one.shape[-1]))
    found = []
    for bits, sigma in tried:
        grid = weight_grid(weight, [], bits, True, sigma)
        moved = of_row * (round_weights(weight, grid) * grid.steps[:, None].astype(np.float32) - weight)
        found.append(float(np.vdot(moved, moved)))
    return found
