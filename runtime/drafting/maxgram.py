"""Max-Gram (MaG, Chen et al. 2023, arXiv 2312.11462): what followed the longest match of the present end.

The longest suffix of prompt and answer that occurs before is looked for (one token suffices); the tokens
after its earliest occurrence are proposed. What is missing to the wanted number comes from a table of
bigrams. With `latest` the latest occurrence counts instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flatlm.runtime.drafting import Guess, Known, Odds, Offer, Place, Rule
from flatlm.runtime.drafting.suffixes import SuffixIndex
from flatlm.runtime.generation.sequence import common_start

CLASSES = 7  # of trust: 0 from a bigram, k for a match of 2**(k-1) tokens and more
RUN = 16  # tokens that are offered at once

# Counted on 24 answers of SmolLM2-135M to GSM8K, HumanEval and edits.
ASSUMED: Odds = dict(enumerate((0.15, 0.27, 0.57, 0.7, 0.87, 0.95, 0.95)))


class Matches:
    """The suffixes of one sequence (700 bytes a token)."""

    def __init__(self) -> None:
        self._index = SuffixIndex()

    def match(self, ids: Sequence[int], n: int, latest: bool) -> tuple[int, list[int]]:
        """(length of the longest match of the end of `ids`, the at most `n` ids that followed it)."""
        index = self._index
        try:
            index.follow(ids, common_start(index.ids, ids))
        except BaseException:  # Ctrl-C in the midst of it
            self._index = SuffixIndex()
            raise
        length, place = index.match(latest)
        return length, index.ids[place : place + n]


class MaxGram:
    """A drafter that costs microseconds."""

    name = "maxgram"
    assumed = ASSUMED
    costs = None
    passes = 0
    seconds = loading = 0.0

    def __init__(self, bigrams: np.ndarray | None = None, latest: bool = False) -> None:
        self._bigrams = [] if bigrams is None else bigrams.tolist()
        self._latest = latest

    def begin(self, rule: Rule | None = None) -> Matches:
        """Nothing here is chosen."""
        return Matches()

    def offer(self, place: Place, known: Known) -> Offer | None:
        guesses = self.propose(place.state, place.ids, min(place.n, RUN))
        return Offer(place, guesses) if guesses else None

    def draft(self, offers: Sequence[Offer]) -> list[list[Guess]]:
        """What is not at hand is looked for."""
        return [list(o.guesses) or self.propose(o.place.state, o.place.ids, o.place.n) for o in offers]

    def propose(self, state: Matches, ids: Sequence[int], n: int) -> list[Guess]:
        """The tokens after the match, then bigrams; fewer where a match ends and no bigram is known."""
        length, found = state.match(ids, n, self._latest)
        name, most = self.name, len(TRUST) - 1
        guesses = [
            Guess(token, name, 1.0, TRUST[min(longer, most)])
            for longer, token in enumerate(found, start=length)
        ]
        last = found[-1] if found else ids[-1]
        while len(guesses) < n and self._bigrams and (last := self._bigrams[last]) >= 0:
            guesses.append(Guess(last, self.name, 1.0, 0))
        return guesses

    def read(self, offer: Offer) -> None:
        """It reads as it goes."""

    def end(self, state: Matches) -> None:
        """Nothing is held open."""

    def close(self) -> None:
        """Nothing is held open."""


def trust(length: int) -> int:
    """The class of a guess behind a match of `length` tokens, those guessed on the way counted."""
    return min(length.bit_length(), CLASSES - 1)


TRUST = [trust(length) for length in range(2 ** (CLASSES - 2) + 1)]  # the last for all that is longer
