"""Drafting for one target: a step proposes, lets the target read the guesses, and keeps what is right.

It knows neither texts nor how guesses come about. Its counters are those of the present answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flatlm.runtime.drafting import Drafter, Guess
from flatlm.runtime.drafting.verify import Rule, verify

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend

Learn = Callable[[int, float, float, Sequence[int]], None]  # rows, the target's seconds, all seconds, written


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
    """`drafter` for one target; `leaves` are the drafters it is made of; `learn` hears how a step ended."""

    def __init__(
        self,
        drafter: Drafter,
        leaves: Sequence[Drafter] = (),
        learn: Learn | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._drafter, self.leaves = drafter, tuple(leaves) or (drafter,)
        self._learn, self._clock = learn, clock
        self._rule: Rule | None = None
        self._reset()

    @property
    def names(self) -> list[str]:
        """Of the drafters, those that `source_of` may give."""
        return [leaf.name for leaf in self.leaves]

    def begin(self, rule: Rule) -> None:
        """A new answer starts, sampled and judged by `rule`."""
        self._rule = rule
        self._drafter.begin(rule.choose)
        self._reset()

    def step(
        self,
        backend: Backend,
        held: list[int],
        history: Sequence[int],
        n: int,
        stop_ids: Collection[int] = frozenset(),
    ) -> list[int]:
        """The 1 to `n` tokens that follow `history`, in one pass of `backend`; nothing after a stop id.

        `held`, which the backend's sequence consists of, is all of `history` but its last id; afterwards it
        is all but the last id of history and answer.
        """
        assert self._rule is not None, "begin() comes before the first step"
        started, before = self._clock(), self._model_seconds()
        guesses = self._drafter.propose(history, n - 1)
        drafted, models = self._clock(), self._model_seconds() - before
        fed = [history[-1], *(guess.token for guess in guesses)]
        rows = backend.forward(np.array(fed, np.int64), logits=len(fed))
        read = self._clock()
        written = verify(rows, guesses, self._rule.judge, history, stop_ids)
        held.extend(fed[: len(written)])
        backend.truncate(len(held))
        ended = self._clock()
        if self._learn is not None:
            self._learn(len(fed), read - drafted, ended - started, written)
        self._count(guesses, written)
        self._target += read - drafted
        self._draft += drafted - started
        self._other += drafted - started - models + self._clock() - ended
        return written

    def timings(self) -> DraftTimings:
        """Of the answer so far."""
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
                    leaf.name,
                    self._drafted.get(leaf.name, 0),
                    self._accepted.get(leaf.name, 0),
                    leaf.passes - before[0],
                    leaf.seconds - before[1],
                )
                for leaf, before in zip(self.leaves, self._before, strict=True)
            ),
        )

    def source_of(self, index: int) -> str:
        """Who proposed token `index` of the answer; empty for the target itself."""
        return self._origins[index]

    def close(self) -> None:
        """Free the drafters' models."""
        self._drafter.close()

    def _reset(self) -> None:
        self._passes, self._rejections = 0, 0
        self._target, self._draft, self._other = 0.0, 0.0, 0.0
        self._drafted: dict[str, int] = {}
        self._accepted: dict[str, int] = {}
        self._origins = [""]  # of the first token, which the target writes when it has read the prompt
        self._before = [(leaf.passes, leaf.seconds) for leaf in self.leaves]

    def _model_seconds(self) -> float:
        return sum(leaf.seconds for leaf in self.leaves)

    def _count(self, guesses: Sequence[Guess], written: Sequence[int]) -> None:
        self._passes += 1
        at = len(written) - 1
        self._rejections += at < len(guesses) and guesses[at].token != written[at]
        for guess in guesses:
            self._drafted[guess.source] = self._drafted.get(guess.source, 0) + 1
        for i, number in enumerate(written):
            right = i < len(guesses) and guesses[i].token == number
            self._origins.append(guesses[i].source if right else "")
            if right:
                self._accepted[guesses[i].source] = self._accepted.get(guesses[i].source, 0) + 1
