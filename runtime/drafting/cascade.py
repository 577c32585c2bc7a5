"""Cascade speculative drafting as published (Chen et al. 2023, arXiv 2312.11462), with its static K matrix.

The target's draft comes from all drafters in turn, the largest first: early tokens are likelier to be kept,
so they are worth more (horizontal). A drafting model writes nothing token by token: it reviews the draft of
those after it (vertical). The last drafter is statistical. Row 0 of K says how many tokens the target's draft
has from each drafter, row i + 1 the same for the draft that drafter i reviews.
"""

from __future__ import annotations

from collections.abc import Sequence

from flatlm.runtime.drafting import Choose, Drafter, Guess
from flatlm.runtime.drafting.model import ModelDrafter

STATISTICAL_DRAFT = 10  # tokens a statistical drafter proposes at once, as in the paper's code

Rows = tuple[tuple[int, ...], ...]  # the upper triangle of K: row i has the columns from i on

PUBLISHED: dict[str, tuple[Rows, float]] = {  # name: K, lenience
    "flan-t5": (((5, 8, 10), (1, 10), (10,)), 5.0),
    "flan-t5-l2": (((5, 14, 10), (1, 10), (10,)), 2.0),
    "llama2": (((13, 10), (10,)), 3.0),
}


class Cascade:
    """`drafters` from the largest to the smallest, models but for the last; `K` as `Rows`; lenience ≥ 1."""

    name = "cascade"

    def __init__(self, drafters: Sequence[Drafter], K: Rows, lenience: float) -> None:
        assert [len(row) for row in K] == row_lengths(len(drafters)) and lenience >= 1
        self._drafters, self._K, self._lenience = list(drafters), K, lenience

    @property
    def passes(self) -> int:
        return sum(drafter.passes for drafter in self._drafters)

    @property
    def seconds(self) -> float:
        return sum(drafter.seconds for drafter in self._drafters)

    def begin(self, choose: Choose) -> None:
        for drafter in self._drafters:
            drafter.begin(choose)

    def propose(self, ids: Sequence[int], n: int) -> list[Guess]:
        """The draft for the target. A step that brings more than its share of K is kept, as published."""
        return self._draft(0, list(ids), n)

    def close(self) -> None:
        for drafter in self._drafters:
            drafter.close()

    def _draft(self, first: int, ids: list[int], n: int) -> list[Guess]:
        """What the reviewer before drafter `first` reads after `ids`: parts of all drafters from there on."""
        guesses: list[Guess] = []
        wanted = 0
        for number, count in enumerate(self._K[first], start=first):
            wanted = min(wanted + count, n)
            while len(guesses) < wanted:
                step = self._step(number, ids + [guess.token for guess in guesses], n - len(guesses))
                if not step:
                    break
                guesses += step
        return guesses

    def _step(self, number: int, ids: list[int], n: int) -> list[Guess]:
        """One proposal of a drafter: what it confirms of the draft of those after it, and a token of its
        own.
        """
        drafter = self._drafters[number]
        if not isinstance(drafter, ModelDrafter):
            return drafter.propose(ids, min(STATISTICAL_DRAFT, n))
        inner = self._draft(number + 1, ids, n - 1) if number + 1 < len(self._drafters) else []
        return drafter.review(ids, inner, self._lenience)


def row_lengths(drafters: int) -> list[int]:
    """Of K's rows: the target's, then that of each drafter with others after it."""
    return list(range(drafters, 0, -1))
