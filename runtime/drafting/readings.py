"""How many steps does a drafting model serve once it has read the prompt?

Reading may cost many steps, and the answer be short, or another drafter do most of it (docs/log/drafting.md,
2026-11-27).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

HORIZON = 64.0  # steps that a reading is taken to serve at first
WEIGHT = 0.5  # of the newest reading in the moving average

# Of the way back to what is assumed, for each answer without the model: so it is tried again.
FORGET = 1 / 16


class Readings:
    """Moving averages, by the name of the drafter.

    A reading serves until the next one in another answer, or until an answer does without the drafter; what
    it has to catch up with in the same answer is no reading of its own.
    """

    def __init__(self) -> None:
        self._serves: dict[str, float] = {}
        self._steps: dict[str, int] = {}  # served by the reading that is still of use
        self._busy: set[str] = set()  # those that read or drafted in this answer
        self._begun = False

    def serves(self, source: str, assumed: float = HORIZON) -> float:
        """The steps that the next reading of `source` will serve, at least one."""
        return max(1.0, self._serves.get(source, assumed))

    def begin(self) -> None:
        """A new answer."""
        if self._begun:
            for source in {*self._serves, *self._steps} - self._busy:
                self._serves[source] = _forgotten(self._ended(source))
                self._steps.pop(source, None)
        self._begun, self._busy = True, set()

    def read(self, source: str) -> None:
        """`source` read much that it had missed."""
        if source not in self._busy:
            self._serves[source] = self._ended(source)
            self._steps[source] = 0
        self._busy.add(source)

    def served(self, source: str) -> None:
        """In a step `source` thought of a part of the draft."""
        if source in self._steps:
            self._steps[source] += 1
        self._busy.add(source)

    def memory(self) -> dict[str, float]:
        """What would be known if no reading served any longer, as JSON can hold it."""
        return {source: self._ended(source) for source in {*self._serves, *self._steps}}

    def recall(self, memory: Mapping[str, float]) -> None:
        """Begin with what an earlier process knew. ValueError and the like where `memory` gave it not."""
        serves = {str(source): float(steps) for source, steps in dict(memory).items()}
        if not all(0 <= steps < math.inf for steps in serves.values()):
            raise ValueError("no memory of readings")
        self._serves = serves

    def _ended(self, source: str) -> float:
        known = self._serves.get(source, HORIZON)
        return known + WEIGHT * (self._steps[source] - known) if source in self._steps else known


def _forgotten(serves: float) -> float:
    return serves + FORGET * (HORIZON - serves)
