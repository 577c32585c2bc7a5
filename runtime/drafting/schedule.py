"""Does a guess pay? Answered with what passes cost and guesses were worth so far, on this very machine.

Time is worth tokens: λ, the tokens per second of all sequences written lately, at least those of plain
decoding. A guess pays where the chance that it is reached and right is more than λ times the seconds that its
row adds to the step of all sequences (Dinkelbach's rule for maximising tokens / seconds). Chances are counted
per source and class of trust, and fade back to what was assumed at first, so that what did not pay is tried
again.

What trying may cost is bounded by a credit, counted in plain steps: a pass that drafted earns the tokens it
wrote and spends the plain steps it took; without credit nothing is drafted. It grows by INTEREST per plain
step, and by what drafting would have earned meanwhile.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from flatlm.runtime.drafting import Guess
from flatlm.runtime.drafting.costs import OUTLIER, Costs
from flatlm.runtime.drafting.lengths import Lengths
from flatlm.runtime.drafting.readings import Readings

MEMORY = 48  # guesses of one class after which an old one counts 1/e
FADE = 1024  # tokens after which the same holds for a class that was not seen again
DOUBT = 2.0  # guesses that what is assumed at first counts as
RATE_MEMORY = 32  # passes over which λ is averaged
INTEREST = 0.015  # of time that may be lost to trying, in the long run
START, MOST = 4.0, 16.0  # credit at first and at most
HOPELESS = 0.02  # chances below it are not added up
PAYBACK = 64  # steps over which the credit pays for what a drafter had to read first
REFRESH = 128  # passes after which the cost of a plain one is measured again


@dataclass
class _Record:
    right: float
    total: float
    seen: int  # tokens written when it was last added to


class Schedule:
    """What is known of the costs of `target`, of chances, of what readings served and how long answers are.

    `together` are the sequences of the present step: a plain one has as many rows.
    """

    def __init__(self, target: Costs | None = None) -> None:
        self.target = Costs() if target is None else target
        self.unsettled = bool(self.target)  # costs are an earlier process's, no plain pass was measured yet
        self.credit = START
        self.together = 1
        self.readings, self.lengths = Readings(), Lengths()
        self._records: dict[tuple[str, int], _Record] = {}
        self._written = 0
        self._passes_since_plain = 0
        self._tokens = self._steps = 0.0  # moving sums: tokens of a sequence, time in plain steps
        self._recalled = 1.0  # λ of an earlier process, in tokens per plain step
        self._debt = 0.0  # plain steps' worth of investments not paid yet

    def may_draft(self) -> bool:
        """Whether there is credit, and the cost of a plain pass is known and fresh."""
        known = bool(self.target) and not self.unsettled
        return known and self.credit > 0 and self._passes_since_plain < REFRESH

    def plain(self) -> float:
        """Seconds of a plain step."""
        return self.target(self.together)

    def rate(self) -> float:
        """λ, tokens per second."""
        plain = self.together / self.plain()
        return max(plain, plain * self._tokens / self._steps) if self._steps else plain

    def odds(self, source: str, trust: int, assumed: float) -> float:
        """The probability that such a guess is right where those before it were."""
        record = self._records.get((source, trust))
        if record is None:
            return assumed
        weight: float = 0.5 ** ((self._written - record.seen) / FADE)
        return (record.right * weight + assumed * DOUBT) / (record.total * weight + DOUBT)

    def note(self, source: str, trust: int, right: bool) -> None:
        """A guess was judged."""
        record = self._records.setdefault((source, trust), _Record(0.0, 0.0, self._written))
        keep = (1 - 1 / MEMORY) * 0.5 ** ((self._written - record.seen) / FADE)
        record.right, record.total = record.right * keep + right, record.total * keep + 1
        record.seen = self._written

    def best_length(
        self, odds: Iterable[float], certain: float = 1.0, rows: int = 1, each: float = 0.0
    ) -> tuple[int, float]:
        """How many of the next guesses to verify, and what that gains in tokens, time counted.

        `odds` are theirs, `certain` the probability that all before are right, `rows` the target's so far,
        `each` the seconds a guess costs before it is verified.
        """
        reached = accumulate(odds, operator.mul, initial=certain)
        next(reached)  # `certain` itself
        return self.best_count(reached, rows, each)

    def best_count(self, reached: Iterable[float], rows: int, each: float = 0.0) -> tuple[int, float]:
        """The same by the probability that each guess is reached and right, the most probable first: they may
        be of several sequences.
        """
        best, gain, expected = 0, 0.0, 0.0
        rate, before = self.rate(), self.target(rows)
        least = max(HOPELESS, rate * each)  # no later guess brings more than the one before
        for count, chance in enumerate(reached, start=1):
            expected += chance
            value = expected - rate * (count * each + self.target(rows + count) - before)
            if value > gain:
                best, gain = count, value
            if chance < least:
                break
        return best, gain

    def memory(self) -> dict[str, Any]:
        """What is known but for costs, as JSON can hold it; empty where nothing was written."""
        if not self._written:
            return {}
        faded = {key: 0.5 ** ((self._written - record.seen) / FADE) for key, record in self._records.items()}
        chances = [[*k, r.right * faded[k], r.total * faded[k]] for k, r in self._records.items()]
        return {
            "tokens_per_plain_step": max(self._tokens / self._steps, 1.0),
            "chances": chances,
            "readings": self.readings.memory(),
            "lengths": self.lengths.memory(),
        }

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Begin with what an earlier process knew. ValueError and the like where it is nothing that
        `memory` gave.
        """
        rate = float(memory["tokens_per_plain_step"])
        records = {
            (str(source), int(trust)): _Record(float(right), float(total), 0)
            for source, trust, right, total in memory["chances"]
        }
        sound = all(0 <= record.right <= record.total < math.inf for record in records.values())
        if not (sound and 1 <= rate < math.inf):
            raise ValueError("no memory of a schedule")
        readings, lengths = Readings(), Lengths()
        readings.recall(memory["readings"])
        lengths.recall(memory.get("lengths", ()))  # files of before they were kept have none
        self._recalled, self._records, self.readings, self.lengths = rate, records, readings, lengths

    def settle(self, seconds: float) -> float:
        """The first plain pass took `seconds`: how much slower the machine is than it was.

        λ counts as much as one pass, for the text may be another.
        """
        factor = seconds / self.plain()
        self.target.scale(factor)
        self.unsettled = False
        self._tokens, self._steps = self._recalled, 1.0
        return factor

    def learn(self, guesses: Sequence[Guess], written: Sequence[int]) -> None:
        """Compare what was guessed with what was `written` instead: as far as the two agree, and one
        further.
        """
        for guess, number in zip(guesses, written, strict=False):
            self.note(guess.source, guess.trust, guess.token == number)
            if guess.token != number:
                break

    def miss(self, chance: float, right: bool) -> None:
        """Without credit a guess of this chance was not drafted, and would have been `right` or not.

        Where it would have been drafted, what it would have brought is earned: one drafter's losses do not
        keep another that pays from being tried.
        """
        if self.best_length([chance], rows=self.together)[0]:
            slower = self.target(self.together + 1) / self.plain() - 1
            self.credit = min(self.credit + right / self.together - slower, START)

    def spend(self, rows: int, target_seconds: float, seconds: float, tokens: int, invested: float) -> None:
        """A step wrote `tokens`: the target's pass over `rows` took `target_seconds`, all of it `seconds`.

        `invested` of those (a drafter read what it had missed) are for later steps too: the credit pays them
        bit by bit, λ does not see them.
        """
        self.target.add(rows, target_seconds)
        self._written += tokens
        plain, drafted, each = self.plain(), rows > self.together, tokens / self.together
        self._passes_since_plain = self._passes_since_plain + 1 if drafted else 0
        current = min(seconds - invested, OUTLIER * self.target(rows) + (seconds - invested - target_seconds))
        steps = min(current / plain, MOST)  # a drafter paused: a stopped process, a machine asleep
        keep = 1 - 1 / RATE_MEMORY
        self._tokens, self._steps = self._tokens * keep + each, self._steps * keep + steps
        self._debt += invested / plain
        paid = self._debt / PAYBACK
        self._debt -= paid
        earned = each - steps if drafted else 0.0
        self.credit = min(self.credit + earned - paid + INTEREST * steps, MOST)
