"""Drafting for one target: sequences that are computed together get drafts, and what came of them is counted.

It knows neither texts nor how guesses come about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flatlm.runtime.drafting import Ask, Composer, Draft, Drafter, Guess, Outcome, Rule


@dataclass(frozen=True)
class SourceTimings:
    """One drafter. Tokens count for the drafter whose choice they are, so a confirmed one for the model."""

    name: str
    drafted: int  # tokens of its that the target read
    accepted: int
    passes: int  # of its model; 0 where it has none
    seconds: float  # that those took


@dataclass(frozen=True)
class DraftTimings:
    """What drafting did in one answer, without its first token, which needs no pass of its own."""

    target_passes: int
    written: int  # tokens that came of them
    drafted: int
    accepted: int
    rejections: int  # passes that ended at a wrong guess
    target_seconds: float
    draft_seconds: float  # in drafters, their models included
    bookkeeping_seconds: float  # proposing but for models' passes, and scheduling
    sources: tuple[SourceTimings, ...]

    @property
    def tokens_per_pass(self) -> float:
        """Tokens written per pass of the target."""
        return self.written / self.target_passes if self.target_passes else 0.0


class Speculator:
    """Drafts by `composer`; `leaves` are the drafters that it asks."""

    def __init__(
        self,
        composer: Composer,
        leaves: Sequence[Drafter] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.composer, self.leaves, self.clock = composer, tuple(leaves), clock

    @property
    def names(self) -> list[str]:
        """Of the drafters, those that `source_of` may give."""
        return [leaf.name for leaf in self.leaves]

    def begin(self, rule: Rule) -> Drafted:
        """A new answer starts, written by `rule`."""
        return Drafted(self, self.composer.begin(rule))

    def propose(self, asked: Sequence[tuple[Drafted, list[int], int]]) -> Round:
        """Drafts for (answer, its ids so far, most tokens to guess) of each that is computed in the step."""
        return Round(self, asked)

    def close(self) -> None:
        """Free the drafters' models."""
        self.composer.close()


class Drafted:
    """What drafting does in one answer: the composer's state, and counters."""

    def __init__(self, speculator: Speculator, state: Any) -> None:
        self.state = state
        self._speculator = speculator
        self._passes, self._rejections = 0, 0
        self._target, self._draft, self._other = 0.0, 0.0, 0.0
        self._drafted: dict[str, int] = {}
        self._accepted: dict[str, int] = {}
        self._model_passes: dict[str, int] = {}
        self._model_seconds: dict[str, float] = {}
        self._origins = [""]  # of the first token, which the target writes when it has read the prompt

    def end(self) -> None:
        """The answer has ended."""
        self._speculator.composer.end(self.state)

    def timings(self) -> DraftTimings:
        """Of the answer so far; seconds that it shared with others are its share."""
        return DraftTimings(
            target_passes=self._passes,
            written=len(self._origins) - 1,
            drafted=sum(self._drafted.values()),
            accepted=sum(self._accepted.values()),
            rejections=self._rejections,
            target_seconds=self._target,
            draft_seconds=self._draft,
            bookkeeping_seconds=self._other,
            sources=tuple(
                SourceTimings(
                    name,
                    self._drafted.get(name, 0),
                    self._accepted.get(name, 0),
                    self._model_passes.get(name, 0),
                    self._model_seconds.get(name, 0.0),
                )
                for name in dict.fromkeys([*self._speculator.names, *self._drafted])  # a grammar's too
            ),
        )

    def source_of(self, index: int) -> str:
        """Who proposed token `index` of the answer; empty for the target itself."""
        return self._origins[index]

    def count(self, draft: Draft, written: Sequence[int]) -> float:
        """What came of a draft; returns the seconds that models took for it."""
        guesses, at = draft.guesses, len(written) - 1
        if not guesses and not draft.passes:
            self.count_plain()
            return 0.0
        self._passes += 1
        self._rejections += at < len(guesses) and guesses[at].token != written[at]
        for guess in guesses:
            self._drafted[guess.source] = self._drafted.get(guess.source, 0) + 1
        for i, number in enumerate(written):
            right = i < len(guesses) and guesses[i].token == number
            self._origins.append(guesses[i].source if right else "")
            if right:
                self._accepted[guesses[i].source] = self._accepted.get(guesses[i].source, 0) + 1
        for name, passes in draft.passes.items():
            self._model_passes[name] = self._model_passes.get(name, 0) + passes
            self._model_seconds[name] = self._model_seconds.get(name, 0.0) + draft.seconds[name]
        return sum(draft.seconds.values())

    def count_plain(self) -> None:
        """A pass of the target without guesses."""
        self._passes += 1
        self._origins.append("")

    def spend(self, target: float, draft: float, other: float) -> None:
        """Its share of the seconds of a step: in the target, in drafters, beside models' passes."""
        self._target += target
        self._draft += draft
        self._other += other


class Round:
    """One step of all sequences: drafts, then the target's pass, then what comes of it.

    `guesses` are what the target is to read of each sequence after its last id.
    """

    def __init__(self, speculator: Speculator, asked: Sequence[tuple[Drafted, list[int], int]]) -> None:
        self._composer, self._clock = speculator.composer, speculator.clock
        self._started = self._clock()
        self._answers = [answer for answer, _, _ in asked]
        self._asks = [Ask(answer.state, ids, n) for answer, ids, n in asked]
        self._drafts = self._composer.propose(self._asks)
        self.guesses: list[list[Guess]] = [draft.guesses for draft in self._drafts]
        self._drafted = self._read = self._clock()

    def read(self) -> None:
        """The target has read it."""
        self._read = self._clock()

    def learn(self, written: Sequence[Sequence[int]]) -> None:
        """What the target writes instead."""
        ended, target = self._clock(), self._read - self._drafted
        self._composer.learn(Outcome(self._asks, self._drafts, written, target, ended - self._started))
        models = 0.0
        for answer, draft, ids in zip(self._answers, self._drafts, written, strict=True):
            models += answer.count(draft, ids)
        share, drafting = 1 / len(self._answers), self._drafted - self._started
        other = drafting - models + self._clock() - ended
        for answer in self._answers:
            answer.spend(target * share, drafting * share, other * share)
