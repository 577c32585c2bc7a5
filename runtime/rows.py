"""What a step of m rows costs beside a step of one: what verifying m - 1 drafted tokens costs.

The weights' bytes are read once for all rows, so the curve is flat as far as memory is the limit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.backends import Backend
from runtime.bench import markdown
from runtime.progress import Progress

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
    """All sizes in turns, `rounds` times, with logits of every row. Leaves the sequence empty."""
    sizes = sorted({1, *sizes})
    ids = np.random.default_rng(0).integers(0, backend.vocab, max(sizes[-1], depth))
    backend.truncate(0)
    if depth:
        backend.forward(ids[:depth])
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for i in range(rounds + 1):  # the first one warms up
        for size in sizes if i % 2 else reversed(sizes):
            started = time.perf_counter()
            for _ in range(STEPS):
                backend.forward(ids[:size], size)
                backend.truncate(depth)
            times[size].append((time.perf_counter() - started) / STEPS)
        if progress is not None:
            progress(i, rounds)
    backend.truncate(0)
    one = times[1][1:]
    return [
        RowCost(
            size,
            statistics.median(found := times[size][1:]),
            statistics.median(a / b for a, b in zip(found, one, strict=True)),
        )
        for size in sizes
    ]


def table(costs: Sequence[RowCost]) -> str:
    """A Markdown table: the curve, and what a row costs in a step of so many."""
    head = ["rows of a step", "ms", "of one row", "ms per row"]
    return markdown(
        head,
        (
            [str(c.rows), f"{1e3 * c.seconds:.2f}", f"{c.ratio:.2f}", f"{1e3 * c.seconds / c.rows:.2f}"]
            for c in costs
        ),
        left=0,
    )
