"""Writing for a while: the first ten seconds beside the last ten. Small devices heat up and slow down."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from flatlm.runtime.backends import Backend
from flatlm.runtime.measuring import thermal
from flatlm.runtime.progress import Progress

WINDOW = 10.0  # s
LONGEST = 128  # tokens before the context is emptied again, as tg128 has it


@dataclass(frozen=True)
class Sustained:
    """Tokens per second over `seconds` of writing, and what the system showed before and after."""

    seconds: float
    first: float
    last: float
    before: dict[str, str]
    after: dict[str, str]


def measure(backend: Backend, seconds: float, progress: Progress | None = None) -> Sustained:
    """Write for `seconds`, with windows of 10 s or half of it. Leaves the sequence empty."""
    ids = np.random.default_rng(0).integers(0, backend.vocab, LONGEST)
    longest, window = min(LONGEST, backend.context), min(WINDOW, seconds / 2)
    before, ends = thermal.facts(), list[float]()
    backend.truncate(0)
    started = time.perf_counter()
    while not ends or ends[-1] < seconds:
        if backend.position >= longest:
            backend.truncate(0)
        backend.forward(ids[backend.position : backend.position + 1])
        ends.append(time.perf_counter() - started)
        if progress is not None:
            progress(min(int(ends[-1]), int(seconds)), int(seconds))
    after = thermal.facts()
    backend.truncate(0)
    first = sum(end <= window for end in ends) / window
    last = sum(end > ends[-1] - window for end in ends) / window
    return Sustained(ends[-1], first, last, before, after)


def describe(found: Sustained) -> str:
    """In words."""
    lines = [
        f"steady state: {found.first:.1f} tokens/s at first, {found.last:.1f} at the end of "
        f"{found.seconds:.0f} s ({found.last / found.first:.2f})"
    ]
    for name in found.before:
        before, after = found.before[name], found.after[name]
        lines.append(f"  {name}: {before}" + (f", then {after}" if after != before else ""))
    return "\n".join(lines)
