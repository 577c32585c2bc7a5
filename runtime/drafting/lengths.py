"""How much longer will an answer be? By how long earlier ones were that came as far."""

from __future__ import annotations

from collections.abc import Sequence

KEPT = 32  # answers that are remembered, the newest
SHARE = 1 / 8  # of answers that came as far, that end before what is said


class Lengths:
    """Of the latest answers, in tokens."""

    def __init__(self) -> None:
        self._lengths: list[int] = []

    def add(self, tokens: int) -> None:
        """An answer had so many."""
        self._lengths = [*self._lengths[1 - KEPT :], tokens]

    def rest(self, written: int) -> int:
        """Tokens that follow `written` in seven of eight answers; 0 where too few are known to say so.

        The chance that the next answer is shorter than the shortest of k is 1 / (k + 1).
        """
        longer = sorted(length for length in self._lengths if length > written)
        place = int(SHARE * (len(longer) + 1)) - 1
        return longer[place] - written if place >= 0 else 0

    def memory(self) -> list[int]:
        """The lengths, as JSON can hold them."""
        return self._lengths

    def recall(self, memory: Sequence[int]) -> None:
        """Begin with those of an earlier process. ValueError and the like where `memory` gave them not."""
        lengths = [int(length) for length in memory]
        if not all(0 < length < 2**31 for length in lengths):
            raise ValueError("no lengths of answers")
        self._lengths = lengths[-KEPT:]
