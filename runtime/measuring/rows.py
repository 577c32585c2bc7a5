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
    backend: Backend,
    sizes: Sequence[int],
    rounds: int,
    *,
    depth: int = 0,
    together: bool = False,
    progress: Progress | None = None,
) -> list[RowCost]:
    """All sizes in turns, `rounds` times, after `depth` tokens, with logits of every row. Rows of one
    sequence or, `together`, one of each of so many, `backend.slots` at most. Leaves them empty.
    """
    sizes = sorted({1, *sizes})
    step = (_step_of_many if together else _step_of_one)(backend, sizes[-1], depth)
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


def _step_of_one(backend: Backend, most: int, depth: int) -> Callable[[int], None]:
    ids = _begin(backend, max(most, depth))
    if depth:
        backend.forward(ids[:depth])

    def step(size: int) -> None:
        backend.forward(ids[:size], size)
        backend.truncate(depth)

    return step


def _step_of_many(backend: Backend, most: int, depth: int) -> Callable[[int], None]:
    ids = _begin(backend, max(1, depth))
    if depth:
        backend.forward(ids[:depth])
    for slot in range(1, most):
        backend.copy(0, slot, depth)

    def step(size: int) -> None:
        backend.forward_many([Segment(slot, ids[:1]) for slot in range(size)])
        for slot in range(size):
            backend.truncate(depth, slot)

    return step


def _begin(backend: Backend, count: int) -> np.ndarray:
    """Random ids, for an empty sequence."""
    backend.truncate(0)
    return np.random.default_rng(0).integers(0, backend.vocab, count)


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
