"""Speed as llama-bench measures it: pp reads a prompt of random ids, tg feeds one id at a time.

Each run starts from an empty context, or from one of `depth` tokens. One unmeasured run
warms up; then `repetitions` runs, mean and standard deviation of tokens per second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flatlm.runtime.errors import ContextError
from flatlm.runtime.progress import Progress

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend

BATCH = 512  # tokens per call in pp, llama-bench's -ub


@dataclass(frozen=True)
class Result:
    """One row. `rates` are tokens per second, one per repetition."""

    model: str
    size: int  # bytes of the model's files
    params: int
    backend: str
    threads: int | None
    test: str  # pp512, tg128
    rates: tuple[float, ...]
    path: str = ""  # the model's folder
    began: str = ""  # when, in UTC: 2026-12-01T12:00:00Z
    machine: str = ""  # the processor's name

    @property
    def mean(self) -> float:
        return statistics.fmean(self.rates)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0


@dataclass
class Report:
    """All that one run of `flatlm bench` found."""

    results: list[Result] = field(default_factory=list)
    more: dict[str, dict[str, Any]] = field(default_factory=dict)  # test: further fields of its JSON object
    extra: dict[str, Any] = field(default_factory=dict)  # JSON of what is no test of tokens per second
    texts: dict[str, str] = field(default_factory=dict)  # what follows the table, for people


def measure(
    backend: Backend,
    kind: str,
    tokens: int,
    repetitions: int,
    progress: Progress | None = None,
    depth: int = 0,
    between: Callable[[], object] = lambda: None,
) -> list[float]:
    """Tokens per second of `repetitions` runs of `kind` ("pp" or "tg") over `tokens` tokens.

    `depth` tokens stand in the context before. `between` is called before, between and after the runs. Raises
    ContextError where all do not fit it.
    """
    if depth + tokens > backend.context:
        raise ContextError(
            f"{name_of(kind, tokens, depth)} does not fit the context of {backend.context} tokens: "
            "raise --ctx"
        )
    ids = np.random.default_rng(0).integers(0, backend.vocab, max(depth, tokens))
    step = BATCH if kind == "pp" else 1
    backend.truncate(0)
    for start in range(0, depth, BATCH):
        backend.forward(ids[start : min(start + BATCH, depth)], logits=1)
    ids = ids[:tokens]
    _run(backend, ids[: tokens if kind == "pp" else 4], step, depth)
    rates = []
    between()
    for i in range(repetitions):
        rates.append(tokens / _run(backend, ids, step, depth))
        between()
        if progress is not None:
            progress(i + 1, repetitions)
    backend.truncate(0)
    return rates


def name_of(kind: str, tokens: int, depth: int) -> str:
    """The test's name, as llama-bench writes it."""
    return f"{kind}{tokens}" + (f" @ d{depth}" if depth else "")


def _run(backend: Backend, ids: np.ndarray, step: int, depth: int) -> float:
    backend.truncate(depth)
    started = time.perf_counter()
    for start in range(0, len(ids), step):
        backend.forward(ids[start : start + step], logits=1)
    return time.perf_counter() - started


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A table with aligned columns: the first `left` to the left, the others to the right."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = (
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join(padded) + " |"

    rule = (
        "| " + " | ".join("-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    )
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])
