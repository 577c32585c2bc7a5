"""Cascade speculative drafting as published (Chen et al. 2023, arXiv 2312.11462), with its static K matrix.

The target's draft comes from all drafters in turn, the largest first: early tokens are likelier to be kept,
so they are worth more (horizontal). A drafting model writes nothing token by token: it reviews the draft of
those after it (vertical). The last drafter is statistical. Row 0 of K says how many tokens the target's draft
has from each drafter, row i + 1 the same for the draft that drafter i reviews. Each sequence has a draft of
its own by K; what several ask of one drafter at a time it does in one pass.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from flatlm.runtime.drafting import Ask, Draft, Drafter, Guess, Offer, Outcome, Place, Rule, carry_out

STATISTICAL_DRAFT = 10  # tokens a statistical drafter proposes at once, as in the paper's code

Thought = Generator[tuple[int, Offer], list[Guess], list[Guess]]  # (drafter, what is asked of it) → guesses
Rows = tuple[tuple[int, ...], ...]  # the upper triangle of K: row i has the columns from i on

PUBLISHED: dict[str, tuple[Rows, float]] = {  # name: K, lenience
    "flan-t5": (((5, 8, 10), (1, 10), (10,)), 5.0),
    "flan-t5-l2": (((5, 14, 10), (1, 10), (10,)), 2.0),
    "llama2": (((13, 10), (10,)), 3.0),
}


class Cascade:
    """`drafters` from the largest to the smallest, models but for the last; `K` as `Rows`; lenience ≥ 1."""

    def __init__(self, drafters: Sequence[Drafter], K: Rows, lenience: float) -> None:
        assert [len(row) for row in K] == row_lengths(len(drafters)) and lenience >= 1
        self._drafters, self._K, self._lenience = list(drafters), K, lenience

    def begin(self, rule: Rule) -> list[Any]:
        """The states of its drafters."""
        return [drafter.begin(rule) for drafter in self._drafters]

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        """A step that brings more than its share of K is kept, as published."""
        drafts = [Draft() for _ in asks]
        thoughts = [self._draft(0, ask) for ask in asks]
        asked = dict[int, tuple[int, Offer]]()  # by sequence
        for number, thought in enumerate(thoughts):
            self._go_on(thought, None, number, asked, drafts)
        while asked:
            drafter = max(which for which, _ in asked.values())  # the smallest: others wait for what it says
            group = {number: offer for number, (which, offer) in asked.items() if which == drafter}
            found = carry_out(self._drafters[drafter], list(group.values()), [drafts[n] for n in group])
            for number, guesses in zip(group, found, strict=True):
                self._go_on(thoughts[number], guesses, number, asked, drafts)
        return drafts

    @staticmethod
    def _go_on(
        thought: Thought,
        guesses: list[Guess] | None,
        number: int,
        asked: dict[int, tuple[int, Offer]],
        drafts: list[Draft],
    ) -> None:
        """Up to the next thing that is asked, or to the end of the draft."""
        try:
            asked[number] = next(thought) if guesses is None else thought.send(guesses)
        except StopIteration as done:
            asked.pop(number, None)
            drafts[number].guesses = drafts[number].considered = done.value

    def _draft(self, first: int, ask: Ask) -> Thought:
        """What the reviewer before drafter `first` reads: parts of all drafters from there on."""
        guesses: list[Guess] = []
        wanted = 0
        for number, count in enumerate(self._K[first], start=first):
            wanted = min(wanted + count, ask.n)
            while len(guesses) < wanted:
                current = ask.ids + [guess.token for guess in guesses]
                step = yield from self._step(number, Ask(ask.state, current, ask.n - len(guesses)))
                if not step:
                    break
                guesses += step
        return guesses

    def _step(self, number: int, ask: Ask) -> Thought:
        """One proposal of a drafter: what it confirms of the draft of those after it, and a token of its
        own.
        """
        (states, ids, n), inner = ask, list[Guess]()
        state = states[number]
        if self._drafters[number].costs is None:
            return (yield number, Offer(Place(state, ids, min(STATISTICAL_DRAFT, n))))
        if number + 1 < len(self._drafters):
            inner = yield from self._draft(number + 1, ask._replace(n=n - 1))
        return (yield number, Offer(Place(state, ids, n), reviewed=inner, lenience=self._lenience))

    def learn(self, step: Outcome) -> None:
        """K stays what it is."""

    def end(self, state: list[Any]) -> None:
        for drafter, own in zip(self._drafters, state, strict=True):
            drafter.end(own)

    def close(self) -> None:
        for drafter in self._drafters:
            drafter.close()


def row_lengths(drafters: int) -> list[int]:
    """Of K's rows: the target's, then that of each drafter with others after it."""
    return list(range(drafters, 0, -1))
