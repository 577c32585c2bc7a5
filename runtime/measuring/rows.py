"""What a step of m rows costs beside a step of one: what verifying m - 1 drafted tokens costs.

The bytes of the weights are read once for all rows: the curve is flat as far as memory is the limit. Rows are
of one sequence, or of as many, each with a K/V cache to read.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.runtime.backends import Backend, Segment
from flatlm.runtime.measuring.bench import markdown
from flatlm.runtime.progress import Progress

STEPS = 8  # of one size in a turn: some ms each


@dataclass(frozen=True)
class RowCost:
    """Steps of `rows` rows: median seconds, and median of the ratios to one row within a round."""

    rows: int
    seconds: float
    ratio: float


def measure(
    backend: Backend, sizes: Sequence[int], rounds: int, depth: int = 0, progress: Progress | None = None
) -> list[RowCost]:
    """Rows of one sequence: all sizes in turns, `rounds` times, with logits of every row. Leaves it empty."""
    ids = _begin(backend, 1, max(1, *sizes), depth)

    def step(size: int) -> None:
        backend.forward(ids[:size], size)
        backend.truncate(depth)

    return _measure(backend, step, sizes, rounds, progress)


def measure_together(
    backend: Backend, sizes: Sequence[int], rounds: int, depth: int = 0, progress: Progress | None = None
) -> list[RowCost]:
    """The same for rows that are one token each of so many sequences, `backend.slots` at most."""
    ids = _begin(backend, max(sizes), 1, depth)

    def step(size: int) -> None:
        backend.forward_many([Segment(slot, ids[:1]) for slot in range(size)])
        for slot in range(size):
            backend.truncate(depth, slot)

    return _measure(backend, step, sizes, rounds, progress)


def _begin(backend: Backend, slots: int, size: int, depth: int) -> np.ndarray:
    """Sequences of `depth` tokens, each with a cache of its own; returns ids to go on with."""
    ids = np.random.default_rng(0).integers(0, backend.vocab, max(size, depth))
    backend.truncate(0)
    if depth:
        backend.forward(ids[:depth])
    for slot in range(1, slots):
        backend.copy(0, slot, depth)
    return ids


def _measure(
    backend: Backend,
    step: Callable[[int], None],
    sizes: Sequence[int],
    rounds: int,
    progress: Progress | None,
) -> list[RowCost]:
    sizes = sorted({1, *sizes})
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for i in range(rounds + 1):  # the first one warms up
        for size in sizes if i % 2 else reversed(sizes):
            started = time.perf_counter()
            for _ in range(STEPS):
                step(size)
            times[size].append((time.perf_counter() - started) / STEPS)
        if progress is not None:
            progress(i, rounds)
    for slot in range(backend.slots):
        backend.truncate(0, slot)
    one = times[1][1:]
    return [
        RowCost(
            size,
            statistics.median(found := times[size][1:]),
            statistics.median(a / b for a, b in zip(found, one, strict=True)),
        )
        for size in sizes
    ]


def table(costs: Sequence[RowCost], what: str = "rows") -> str:
    """A Markdown table: the curve, and what a row costs in a step of so many."""
    head = [f"{what} of a step", "ms", "of one", "ms for each"]
    return markdown(
        head,
        (
            [str(c.rows), f"{1e3 * c.seconds:.2f}", f"{c.ratio:.2f}", f"{1e3 * c.seconds / c.rows:.2f}"]
            for c in costs
        ),
        left=0,
    )
