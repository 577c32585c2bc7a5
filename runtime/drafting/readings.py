"""How many steps does a drafting model serve once it has read the prompt, or else what it had missed?

It may cost many steps to read, and the answer be short, or another drafter do most of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

HORIZON = 64.0  # steps that a reading is taken to serve at first
WEIGHT = 0.5  # of the newest reading in the moving average
FORGET = (
    1 / 16
)  # of the way back to what is assumed, for each answer without a reading: then it is tried again


class Readings:
    """Moving averages, by the name of the drafter."""

    def __init__(self) -> None:
        self._serves: dict[str, float] = {}
        self._steps: dict[str, int] = {}  # served by a reading that is still of use

    def serves(self, source: str) -> float:
        """The steps that the next reading of `source` will serve, at least one."""
        return max(1.0, self._serves.get(source, HORIZON))

    def begin(self) -> None:
        """A new answer: its text is another."""
        for source in self._serves.keys() - self._steps.keys():
            self._serves[source] += FORGET * (HORIZON - self._serves[source])
        for source in list(self._steps):
            self._end(source)

    def read(self, source: str) -> None:
        """`source` read much that it had missed."""
        self._end(source)
        self._steps[source] = 0

    def served(self, source: str) -> None:
        """In a step `source` wrote a part of the draft."""
        if source in self._steps:
            self._steps[source] += 1

    def memory(self) -> dict[str, float]:
        """What is known, as JSON can hold it; the last reading's steps are over."""
        for source in list(self._steps):
            self._end(source)
        return dict(self._serves)

    def recall(self, memory: Mapping[str, float]) -> None:
        """Begin with what an earlier process knew. ValueError and the like where `memory` gave it not."""
        serves = {str(source): float(steps) for source, steps in dict(memory).items()}
        if not all(0 <= steps < math.inf for steps in serves.values()):
            raise ValueError("no memory of readings")
        self._serves = serves

    def _end(self, source: str) -> None:
        if source in self._steps:
            steps, known = self._steps.pop(source), self._serves.get(source, HORIZON)
            self._serves[source] = known + WEIGHT * (steps - known)
