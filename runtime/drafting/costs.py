"""What a forward pass over m rows costs, as measured while it is used."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

WEIGHT = 0.25  # of the newest measurement in the moving average
OUTLIER = 2.5  # times the expected: a pause of the machine, not a cost
SLOPE = 0.1  # of one row's cost, at least, for each row beyond what was measured; smollm2 on two Zen 4: 0.09
TINY = 1e-9  # seconds that no pass takes
SWEEP = 32  # passes between two looks for stale ones
STALE = 512  # passes after which a number of rows that was not used again is guessed anew


class Costs:
    """Seconds of a pass by its rows: a moving average for each number of rows, straight lines between.

    Where nothing at all is known, a row is taken to cost `assumed`.
    """

    def __init__(self) -> None:
        self.assumed = 0.0
        self._passes = 0  # of this process
        self._average: dict[int, float] = {}
        self._used: dict[int, int] = {}  # the pass at which a number of rows was measured last
        self._rows: list[int] = []  # sorted; all have an average, whatever was interrupted

    def __bool__(self) -> bool:
        return bool(self._rows)

    def memory(self) -> dict[str, Any]:
        """The averages and their ages, as JSON can hold them; empty where no pass was added."""
        found = [[rows, seconds, self._passes - self._used[rows]] for rows, seconds in self._average.items()]
        return {"rows": found} if self._passes else {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Begin with the averages of an earlier process. ValueError and the like where they are none."""
        found = [(int(rows), float(seconds), int(age)) for rows, seconds, age in memory["rows"]]
        if not all(rows >= 1 and TINY < seconds < math.inf and age >= 0 for rows, seconds, age in found):
            raise ValueError("no costs of passes")
        self._rows = []
        self._average = {rows: seconds for rows, seconds, _ in found}
        self._used = {rows: -age for rows, _, age in found}
        self._forget()

    def scale(self, factor: float) -> None:
        """The machine has become slower by `factor`."""
        self._average = {rows: seconds * factor for rows, seconds in self._average.items()}

    def add(self, rows: int, seconds: float) -> None:
        """A pass over `rows` rows took `seconds`."""
        if self._rows:
            seconds = min(seconds, OUTLIER * self(rows))
        self._passes += 1
        self._used[rows] = self._passes
        known = self._average.get(rows, seconds)
        self._average[rows] = known + WEIGHT * (seconds - known)
        if len(self._rows) != len(self._average):
            self._rows = sorted(self._average)
        if self._passes % SWEEP == 0:
            self._forget()

    def _forget(self) -> None:
        """What was not used for long; but not the cost of the fewest rows, which others are compared with."""
        fewest = min(self._average, default=0)
        fresh = {
            r: s for r, s in self._average.items() if r == fewest or self._passes - self._used[r] <= STALE
        }
        self._rows = sorted(fresh)  # first: all of these have an average already
        self._average = fresh

    def __call__(self, rows: float) -> float:
        """Expected seconds of a pass over `rows` rows, which need be no whole number."""
        if not self._rows:
            return self.assumed * (1 + (rows - 1) * SLOPE)
        at = bisect_left(self._rows, rows)
        if at == 0:
            return self._average[self._rows[0]]
        low = self._rows[at - 1]
        if at == len(self._rows):
            return self._average[low] + (rows - low) * self._slope()
        high = self._rows[at]
        share = (rows - low) / (high - low)
        return self._average[low] * (1 - share) + self._average[high] * share

    def _slope(self) -> float:
        """Seconds of a row beyond what was measured: it is not cheaper than those on the way there."""
        fewest, most = self._rows[0], self._rows[-1]
        least, seconds = self._average[fewest], self._average[most]
        usual = SLOPE * least / (1 + (fewest - 1) * SLOPE)
        return max(usual, (seconds - least) / (most - fewest)) if most > fewest else usual
