"""Speed as llama-bench measures it: pp reads a prompt of random ids, tg feeds one id at a time.

Each run starts from an empty context, or from one of `depth` tokens. One unmeasured run
warms up; then `repetitions` runs, mean and standard deviation of tokens per second.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import ContextError
from runtime.progress import Progress

if TYPE_CHECKING:
    from runtime.backends import Backend

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

    @property
    def mean(self) -> float:
        return statistics.fmean(self.rates)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0


def measure(
    backend: Backend,
    kind: str,
    tokens: int,
    repetitions: int,
    progress: Progress | None = None,
    depth: int = 0,
) -> list[float]:
    """Tokens per second of `repetitions` runs of `kind` ("pp" or "tg") over `tokens` tokens.

    `depth` tokens stand in the context before. Raises ContextError where all do not fit it.
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
    for i in range(repetitions):
        rates.append(tokens / _run(backend, ids, step, depth))
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


def table(results: Sequence[Result], form: str) -> str:
    """The results as text: md (llama-bench's table), json (a list) or csv."""
    if form == "json":
        return json.dumps([{**asdict(r), "avg_ts": r.mean, "stddev_ts": r.deviation} for r in results])
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["model", "size", "params", "backend", "threads", "test", "avg_ts", "stddev_ts"])
        for r in results:
            writer.writerow([r.model, r.size, r.params, r.backend, r.threads, r.test, r.mean, r.deviation])
        return text.getvalue().rstrip("\n")
    head = ["model", "size", "params", "backend", "threads", "test", "t/s"]
    return markdown(head, (_cells(result) for result in results), left=1)


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


def _cells(result: Result) -> list[str]:
    size, params = f"{result.size / 2**20:.2f} MiB", f"{result.params / 1e6:.2f} M"
    rate = f"{result.mean:.2f} ± {result.deviation:.2f}"
    return [result.model, size, params, result.backend, str(result.threads or "auto"), result.test, rate]
