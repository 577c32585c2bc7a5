"""The search: hypothesis draws cases and shrinks those that are findings, for as long as it is given.

A run is made of rounds of some thousand cases, each with a seed of its own. A round ends with the first
finding that the run does not know yet, as small as hypothesis makes it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.errors import HypothesisException

from tests.fuzzing.lines import Line, lines_of, traced
from tests.fuzzing.minimise import minimise
from tests.fuzzing.target import Case, Prepared, Target
from tests.fuzzing.worker import Finding, Worker

ROUND = 2000  # cases
SHRINKING = 15.0  # seconds for one finding, then the smallest so far
ROUNDS = 10_000_000  # a run's seed times this is its first round's

COMMON = settings(
    max_examples=ROUND,
    database=None,
    deadline=None,
    derandomize=False,
    phases=(Phase.generate, Phase.shrink),
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
    verbosity=Verbosity.quiet,
)


@dataclass
class Result:
    """Of a run; `lines` were reached, of `all_lines`."""

    target: str
    seed: int
    cases: int = 0
    refused: int = 0
    seconds: float = 0.0
    findings: list[tuple[Finding, Case]] = field(default_factory=list)
    lines: set[Line] = field(default_factory=set)
    all_lines: set[Line] = field(default_factory=set)

    @property
    def coverage(self) -> float:
        """The share of lines that was reached."""
        return len(self.lines) / len(self.all_lines) if self.all_lines else 0.0


class TimeUpError(BaseException):
    """Not an Exception: hypothesis lets it through."""


class FoundError(Exception):
    """What hypothesis shrinks."""


def search(target: Target, prepared: Prepared, seconds: float, number: int) -> Result:
    """Fuzz for `seconds`; `number` is the seed."""
    result = Result(target.name, number, all_lines=lines_of(target.modules))
    start = time.monotonic()
    with Worker(prepared.run, target.limits, result.all_lines) as worker:
        at = number * ROUNDS
        while time.monotonic() < start + seconds:
            _round(worker, prepared, result, at, start + seconds)
            at += 1
    result.seconds = time.monotonic() - start
    return result


def _round(worker: Worker, prepared: Prepared, result: Result, number: int, until: float) -> None:
    known = {finding for finding, _ in result.findings}
    found: list[tuple[Finding, Case]] = []  # of one defect, as they were met
    limit = [until]

    def test(case: Case) -> None:
        if time.monotonic() > limit[0]:
            raise TimeUpError
        reply = worker.run(case, traced(result.cases) and not found)
        result.cases += 1
        result.refused += reply.refused
        result.lines.update(reply.lines)
        finding = reply.finding
        if finding is None or finding in known or (found and finding != found[0][0]):
            return
        if not found:
            limit[0] = time.monotonic() + SHRINKING
        found.append((finding, case))
        raise FoundError

    _drawn(prepared, number, test)
    if found:
        finding, case = min(found, key=lambda one: len(one[1].content))
        result.findings.append((finding, _repeated(worker, finding, case)))


def _drawn(prepared: Prepared, number: int, test: Callable[[Case], Any]) -> None:
    # hypothesis raises its own where a finding does not repeat
    with contextlib.suppress(TimeUpError, FoundError, HypothesisException):
        seed(number)(COMMON(given(prepared.cases)(test)))()


def _repeated(worker: Worker, finding: Finding, case: Case) -> Case:
    """The case with less in it, if it is a finding again."""
    worker.stop()
    until = time.monotonic() + SHRINKING

    def same(content: bytes) -> bool:
        return worker.run(case._replace(content=content)).finding == finding

    return case._replace(content=minimise(case.content, same, until))
