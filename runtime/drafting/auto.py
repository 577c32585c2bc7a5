"""A cascade whose shape is chosen anew for every token, by what the schedule expects to pay.

At each place of the draft there are these ways on, and the one with the largest gain is taken:

- the tokens Max-Gram proposes, as many as pay;
- one pass of a model over the first few of those (vertical): what it confirms, and a token of its own;
- an end, when nothing pays. Where nothing pays at the first place, the step is a plain one.

What Max-Gram would have said is compared with what was written even then, so its chances are always known.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

from flatlm.runtime.drafting import Choose, Guess
from flatlm.runtime.drafting.maxgram import MaxGram
from flatlm.runtime.drafting.model import CLASSES as MODEL_CLASSES
from flatlm.runtime.drafting.model import FEW, ModelDrafter
from flatlm.runtime.drafting.schedule import HOPELESS, NEXT, Odds, Schedule

RUN = 16  # tokens asked of Max-Gram at once
AHEAD = 8  # passes of a model that are thought of at once

# Assumed at first. Max-Gram's were counted on 24 answers of SmolLM2-135M to GSM8K, HumanEval and edits; a
# model is taken at its word.
MAXGRAM: Odds = dict(enumerate((0.15, 0.27, 0.57, 0.7, 0.87, 0.95, 0.95)))
MODEL: Odds = {NEXT: 0.7, **{i: (i + 0.5) / MODEL_CLASSES for i in range(MODEL_CLASSES)}}


class Way(NamedTuple):
    """A way on: who goes it, how many of Max-Gram's tokens are used, what it gains in tokens."""

    model: ModelDrafter | None
    used: int
    gain: float
    invested: bool = False  # the model reads much that it has missed


class Auto:
    """`maxgram` and `models`, either of which may be missing, by `schedule`."""

    name = "auto"

    def __init__(
        self, schedule: Schedule, maxgram: MaxGram | None, models: Sequence[ModelDrafter] = ()
    ) -> None:
        self.schedule = schedule
        self._maxgram, self._models = maxgram, list(models)
        self._ready: list[Guess] = []  # what Max-Gram alone would have said in this step
        self._considered: list[Guess] = []  # what was thought of, whether it was proposed or not
        self._invested = 0.0
        self._loading = 0.0

    @property
    def passes(self) -> int:
        return sum(model.passes for model in self._models)

    @property
    def seconds(self) -> float:
        return sum(model.seconds for model in self._models)

    def begin(self, choose: Choose) -> None:
        self.schedule.readings.begin()
        for model in self._models:
            model.begin(choose)

    def propose(self, ids: Sequence[int], n: int) -> list[Guess]:
        """The draft that pays; at most `n` tokens, often none."""
        run = self._run(ids, max(n, 1))
        self._ready, self._considered = run[:1], []
        self._invested = self._loading = 0.0
        if n < 1 or not self.schedule.may_draft():
            return []
        guesses = self._considered = self._draft(ids, run, n)
        if not self._models:  # the draft is as long as pays
            return guesses
        for source in {guess.source for guess in guesses} - {MaxGram.name}:
            self.schedule.readings.served(source)
        if any(guess.law for guess in guesses):  # the rejection rule allows no choice by what was drawn
            return guesses
        return guesses[: self.schedule.best_length(map(self._odds, guesses))[0]]

    def learn(self, rows: int, target_seconds: float, seconds: float, written: Sequence[int]) -> None:
        """How the step ended: see Schedule.spend."""
        if self.schedule.unsettled:
            slower = self.schedule.settle(target_seconds)
            for model in self._models:
                model.costs.scale(slower)
        first = self._considered[0] if self._considered else None
        if self._ready and self.schedule.credit <= 0:
            self.schedule.miss(self._odds(self._ready[0]), self._ready[0].token == written[0])
        self.schedule.learn(self._considered, written)
        if first is None or first.source != MaxGram.name:
            self.schedule.learn(self._ready, written)
        if first is not None and first.source != MaxGram.name:
            self.schedule.note(first.source, NEXT, first.token == written[0])
        self.schedule.spend(rows, target_seconds, seconds - self._loading, len(written), self._invested)

    def close(self) -> None:
        for model in self._models:
            model.close()

    def _draft(self, ids: Sequence[int], run: Sequence[Guess], n: int) -> list[Guess]:
        """All that was thought of: way after way, while one pays. Max-Gram has proposed `run` after `ids`."""
        current, guesses, certain = list(ids), list[Guess](), 1.0
        while len(guesses) < n:
            way = self._best(current, run, certain, 1 + len(guesses), n - len(guesses))
            more = self._go(way, current, run)
            if not more:
                break
            guesses += more
            current += [guess.token for guess in more]
            for guess in more:
                certain *= self._odds(guess)
            if way.model is None and way.used < len(run):
                if not self._models:
                    break  # more of the run does not pay, and nobody else could go on
                run = run[way.used :]  # Max-Gram would say it again
            else:
                run = self._run(current, n - len(guesses))
        return guesses

    def _run(self, ids: Sequence[int], n: int) -> list[Guess]:
        return self._maxgram.propose(ids, min(n, RUN)) if self._maxgram else []

    def _odds(self, guess: Guess) -> float:
        assumed = MAXGRAM if guess.source == MaxGram.name else MODEL
        return self.schedule.odds(guess.source, guess.trust, assumed[guess.trust])

    def _best(self, ids: Sequence[int], run: Sequence[Guess], certain: float, rows: int, room: int) -> Way:
        used, gain = self.schedule.best_length(map(self._odds, run), certain, rows)
        ways = [Way(None, used, gain)]
        ways += [self._way(model, ids, run[: room - 1], certain, rows) for model in self._models]
        return max(ways, key=lambda way: way.gain)

    def _way(
        self, model: ModelDrafter, ids: Sequence[int], run: Sequence[Guess], certain: float, rows: int
    ) -> Way:
        """What passes of `model` gain, the first over as much of `run` as makes its tokens cheapest."""
        schedule, costs = self.schedule, model.costs
        if not costs:
            costs.assumed = model.size * schedule.target(1)
        used, each = self._cheapest(model, run)
        right = schedule.odds(model.name, NEXT, MODEL[NEXT])
        _, gain = schedule.best_length(repeat(right, AHEAD), certain, rows, each)
        if gain <= 0:
            return Way(model, 0, 0.0)
        behind = model.behind(ids, [guess.token for guess in run])
        if behind is None:
            return Way(model, 0, 0.0)
        if behind <= FEW:
            return Way(model, used, gain)
        share = costs(behind) / schedule.readings.serves(model.name)
        return Way(model, used, gain - schedule.rate() * share, invested=True)

    def _cheapest(self, model: ModelDrafter, run: Sequence[Guess]) -> tuple[int, float]:
        """How much of `run` `model` should review for the fewest seconds a token, and these seconds."""
        source, costs = _reviews(model), model.costs
        used, cheapest = 0, costs(1)
        expected, agreed = 1.0, 1.0
        for count, guess in enumerate(run, start=1):
            agreed *= self.schedule.odds(source, guess.trust, MAXGRAM[guess.trust])
            expected += agreed
            cost = costs(1 + count) / expected
            if cost < cheapest:
                used, cheapest = count, cost
            if agreed < HOPELESS:
                break
        return used, cheapest

    def _go(self, way: Way, ids: Sequence[int], run: Sequence[Guess]) -> list[Guess]:
        """The tokens of a way; none where it does not pay."""
        if way.gain <= 0:
            return []
        run = run[: way.used]
        if way.model is None:
            return list(run)
        before, loading = way.model.seconds, way.model.loading
        more = way.model.review(ids, run)
        loading = way.model.loading - loading
        self._loading += loading
        if way.invested:
            self.schedule.readings.read(way.model.name)
            self._invested += way.model.seconds - before - loading
        for mine, other in zip(more, run, strict=False):
            self.schedule.note(_reviews(way.model), other.trust, mine.token == other.token)
        return more


def _reviews(model: ModelDrafter) -> str:
    """The source under which it is counted how often `model` confirms Max-Gram."""
    return f"{model.name} reviewing"
