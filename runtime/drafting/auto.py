"""A cascade whose shape is chosen anew for every token, by what the schedule expects to pay.

At each place of a draft every drafter makes an offer, and the one with the largest gain is taken:

- the tokens that a drafter without costs has at hand (Max-Gram's), as many as pay;
- one pass of a model over the first few of those (vertical): what it confirms, and a token of its own;
- an end, when nothing pays. Where nothing pays at the first place, the step is a plain one.

All sequences of a step think at once: a model's pass serves those that take part together and costs each its
rows of it, and of all that was thought of the target reads the most probable guesses, whose-ever they are, as
many as pay. What drafters without costs would have said is compared with what was written even then, so
their chances are always known.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import itemgetter, mul
from typing import Any, NamedTuple

from flatlm.runtime.drafting import (
    NEXT,
    Ask,
    Draft,
    Drafter,
    Guess,
    Offer,
    Outcome,
    Place,
    Rule,
    book,
    carry_out,
)
from flatlm.runtime.drafting.schedule import Schedule
from flatlm.runtime.generation.constraint import Constraint

AT_ONCE = 16  # tokens asked of a drafter without costs
PATIENCE = 1 / 7  # of an answer's time so far, that may go into reading what it need not repay


class Course:
    """What `Auto` knows of an answer: states of its drafters, its constraint, tokens, and time."""

    def __init__(self, states: dict[Drafter, Any], constraint: Constraint | None) -> None:
        self.states, self.constraint = states, constraint
        self.first = 0  # place of its first id
        self.written = 0
        self.seconds = self.invested = 0.0  # its share of steps; of these, in reading


class Way(NamedTuple):
    """A way on: by which drafter, how many tokens it is expected to pay for, and what it gains, in tokens."""

    drafter: Drafter | None
    offer: Offer | None
    tokens: int
    gain: float


NONE = Way(None, None, 0, 0.0)


class Thought:
    """A draft that is being made: where it stands, what is at hand there, and if it goes on."""

    def __init__(self, ask: Ask) -> None:
        self.draft = Draft()
        self.course: Course = ask.state
        self.course.first = self.course.first or len(ask.ids) - 1
        self.ids, self.n = ask.ids, ask.n
        self.certain = 1.0  # the probability that all its guesses are right
        self.at_hand: dict[Drafter, Offer] = {}
        self.way = NONE


class Auto:
    """`drafters` by `schedule`."""

    def __init__(self, schedule: Schedule, drafters: Sequence[Drafter]) -> None:
        self.schedule = schedule
        self._drafters = list(drafters)
        self._free = [drafter for drafter in drafters if drafter.costs is None]
        self._paid = [drafter for drafter in drafters if drafter.costs is not None]
        self._assumed = {drafter.name: drafter.assumed for drafter in drafters}
        self._paid_names = {drafter.name for drafter in self._paid}
        self._rows = 0  # of the target, with all that is thought of so far in the step

    def begin(self, rule: Rule) -> Course:
        self.schedule.readings.begin()
        return Course({drafter: drafter.begin(rule) for drafter in self._drafters}, rule.constraint)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        """The drafts that pay; often empty ones."""
        self.schedule.together = len(asks)
        thoughts, may_draft = [Thought(ask) for ask in asks], self.schedule.may_draft()
        for thought in thoughts:
            self._look(thought, max(thought.n, 1) if may_draft else 1)
            thought.draft.ready = [offer.guesses[0] for offer in thought.at_hand.values()]
        if may_draft:
            self._think([thought for thought in thoughts if thought.n > 0])
            self._choose(thoughts)
        return [thought.draft for thought in thoughts]

    # ---- what the drafters are told: see Known

    def right(self, drafter: Drafter) -> float:
        return self.schedule.odds(drafter.name, NEXT, drafter.assumed[NEXT])

    def agrees(self, drafter: Drafter, guess: Guess) -> float:
        return self.schedule.odds(_reviews(drafter), guess.trust, self._assumed[guess.source][guess.trust])

    def plain(self) -> float:
        return self.schedule.target(1)

    # ---- a draft of each sequence

    def _think(self, going: list[Thought]) -> None:
        """All that is worth a thought: way after way, while one pays."""
        first = True
        self._rows = self.schedule.together
        while going:
            for thought in going:
                thought.way = self._at_hand(thought)
            for drafter in self._paid:
                self._offers(drafter, going, first)
            going = [thought for thought in going if thought.way.gain > 0]
            self._rows += self._go(going)
            going = [t for t in going if t.way.gain > 0 and len(t.draft.considered) < t.n]
            if not self._paid:
                going = [t for t in going if not t.at_hand]  # who has more at hand found it does not pay
            for thought in going:
                self._look(thought, thought.n - len(thought.draft.considered))
            first = False

    def _look(self, thought: Thought, n: int) -> None:
        """What drafters without costs say at its place, but for who has said it already."""
        for drafter in self._free:
            if drafter not in thought.at_hand:
                place = Place(thought.course.states[drafter], thought.ids, min(n, AT_ONCE))
                offer = drafter.offer(place, self)
                if offer is not None and thought.course.constraint is not None:
                    taken = thought.course.constraint.takes(place.ids, [g.token for g in offer.guesses])
                    offer = offer._replace(guesses=offer.guesses[:taken])  # more is surely wrong
                if offer is not None and offer.guesses:
                    thought.at_hand[drafter] = offer

    def _at_hand(self, thought: Thought) -> Way:
        """The best of what costs nothing."""
        best = NONE
        for drafter, offer in thought.at_hand.items():
            odds = map(self._odds, offer.guesses)
            count, gain = self.schedule.best_length(odds, thought.certain, self._rows)
            if gain > best.gain:
                best = Way(drafter, offer, count, gain)
        return best

    def _offers(self, drafter: Drafter, thoughts: Sequence[Thought], first: bool) -> None:
        """Let those take the way of `drafter` for whom it is the best, the pass shared by who takes part."""
        asked = []
        for thought in thoughts:
            run = max((o.guesses for o in thought.at_hand.values()), key=len, default=())
            if thought.way.offer is not None and not thought.way.offer.rows:
                run = thought.way.offer.guesses
            room = thought.n - len(thought.draft.considered)
            place = Place(thought.course.states[drafter], thought.ids, room, run)
            if (offer := drafter.offer(place, self)) is not None:
                asked.append((thought, offer))
        ways = self._shared(drafter, asked)
        while True:
            going = [(one, way) for one, way in zip(asked, ways, strict=True) if way.gain > one[0].way.gain]
            if len(going) == len(asked):
                break
            asked = [one for one, _ in going]  # who stays has more of the pass to pay
            ways = self._shared(drafter, asked)
        for (thought, offer), way in zip(asked, ways, strict=True):
            if not offer.invested or drafter.costs:
                thought.way = way
            elif first:
                self._read_a_part(drafter, thought, offer)

    def _shared(self, drafter: Drafter, asked: Sequence[tuple[Thought, Offer]]) -> list[Way]:
        """What the ways of `drafter` gain if all of `asked` go them; its pass costs each by its rows."""
        if not asked:
            return []
        total = sum(offer.rows for _, offer in asked)
        assert drafter.costs is not None
        row, ways = drafter.costs(total) / total, []
        for thought, offer in asked:
            each = row * offer.rows / offer.tokens
            count, gain = self.schedule.best_length(offer.chances, thought.certain, self._rows, each)
            if offer.invested and gain > 0:
                gain = self._after_reading(drafter, thought, offer, count, gain)
            ways.append(Way(drafter, offer, count, gain))
        return ways

    # ---- reading what was missed

    def _after_reading(
        self, drafter: Drafter, thought: Thought, offer: Offer, tokens: int, gain: float
    ) -> float:
        """What is left of a gain when the reading it needs is paid by all steps that it serves.

        Nothing, unless answers that came so far go on for long enough to repay it, seven of eight of them; or
        so much time has passed in this one that the reading is a small part of it, however it ends.
        """
        schedule, course = self.schedule, thought.course
        price = schedule.rate() * offer.invested
        steps = min(schedule.lengths.rest(course.written), thought.n) / (1 + tokens)
        patient = course.invested + offer.invested <= PATIENCE * course.seconds
        if not patient and gain * steps <= price:
            return 0.0
        serves = schedule.readings.serves(drafter.name, *([steps] if steps else []))
        return gain - price / serves

    def _read_a_part(self, drafter: Drafter, thought: Thought, offer: Offer) -> None:
        """Nobody knows what a pass of `drafter` costs: a few tokens tell it."""
        passes, seconds, loading = drafter.passes, drafter.seconds, drafter.loading
        drafter.read(offer)
        book(drafter, [thought.draft], passes, seconds, loading)
        self._invest(drafter, thought, drafter.seconds - seconds - (drafter.loading - loading))

    def _invest(self, drafter: Drafter, thought: Thought, seconds: float) -> None:
        self.schedule.readings.read(drafter.name)
        thought.draft.invested += seconds

    # ---- going the ways

    def _go(self, going: Sequence[Thought]) -> int:
        """Each goes its way; returns the guesses that came of it. A way that led nowhere gains nothing."""
        before = sum(len(thought.draft.considered) for thought in going)
        for drafter in {thought.way.drafter: None for thought in going}:
            assert drafter is not None
            group = [thought for thought in going if thought.way.drafter is drafter]
            if drafter.costs is None:
                for thought in group:
                    self._take_at_hand(drafter, thought)
            else:
                self._pass(drafter, group)
        return sum(len(thought.draft.considered) for thought in going) - before

    def _take_at_hand(self, drafter: Drafter, thought: Thought) -> None:
        way = thought.way
        assert way.offer is not None
        more, rest = way.offer.guesses[: way.tokens], way.offer.guesses[way.tokens :]
        thought.at_hand = {drafter: way.offer._replace(guesses=rest)} if rest else {}  # it would say it again
        self._add(thought, more)

    def _pass(self, drafter: Drafter, group: Sequence[Thought]) -> None:
        offers = [thought.way.offer for thought in group if thought.way.offer is not None]
        seconds, loading = drafter.seconds, drafter.loading
        found = carry_out(drafter, offers, [thought.draft for thought in group])
        invested = [offer.invested for offer in offers]
        if any(invested):
            took = drafter.seconds - seconds - (drafter.loading - loading)
            for thought, part in zip(group, invested, strict=True):
                if part:
                    self._invest(drafter, thought, took * part / sum(invested))
        for thought, offer, more in zip(group, offers, found, strict=True):
            for mine, other in zip(more, offer.reviewed, strict=False):
                self.schedule.note(_reviews(drafter), other.trust, mine.token == other.token)
            thought.at_hand = {}
            self._add(thought, more)

    def _add(self, thought: Thought, more: Sequence[Guess]) -> None:
        if not more:
            thought.way = NONE
        thought.draft.considered += more
        thought.ids = thought.ids + [guess.token for guess in more]
        for guess in more:
            thought.certain *= self._odds(guess)

    def _odds(self, guess: Guess) -> float:
        return self.schedule.odds(guess.source, guess.trust, self._assumed[guess.source][guess.trust])

    # ---- what the target reads

    def _choose(self, thoughts: Sequence[Thought]) -> None:
        """Of all that was thought of the most probable guesses, as many as pay."""
        if len(thoughts) == 1 and not self._paid:
            thoughts[0].draft.guesses = thoughts[0].draft.considered  # it is as long as pays
            return
        rows, reached = len(thoughts), list[tuple[float, int]]()
        for number, thought in enumerate(thoughts):
            draft = thought.draft
            if not draft.considered:
                continue
            for source in {guess.source for guess in draft.considered} & self._paid_names:
                self.schedule.readings.served(source)
            if any(guess.law for guess in draft.considered):
                draft.guesses = draft.considered  # the rejection rule allows no choice by what was drawn
                rows += len(draft.guesses)
            else:
                chances = accumulate(map(self._odds, draft.considered), mul)
                reached += ((chance, number) for chance in chances)
        reached.sort(key=itemgetter(0), reverse=True)
        count, _ = self.schedule.best_count(map(itemgetter(0), reached), rows)
        taken = [0] * len(thoughts)
        for _, number in reached[:count]:
            taken[number] += 1
        for thought, length in zip(thoughts, taken, strict=True):
            thought.draft.guesses = thought.draft.guesses or thought.draft.considered[:length]

    # ---- what came of it

    def learn(self, step: Outcome) -> None:
        """See Composer, and Schedule.spend."""
        schedule, seconds = self.schedule, step.seconds
        if schedule.unsettled:
            slower = schedule.settle(step.target_seconds)
            for drafter in self._paid:
                assert drafter.costs is not None
                drafter.costs.scale(slower)
        tokens, rows, invested = 0, 0, 0.0
        for draft, ids in zip(step.drafts, step.written, strict=True):
            self._compare(draft, ids)
            tokens, rows = tokens + len(ids), rows + 1 + len(draft.guesses)
            invested, seconds = invested + draft.invested, seconds - draft.loading
        schedule.spend(rows, step.target_seconds, seconds, tokens, invested)
        share = seconds / len(step.asks)
        for (course, ids, _), draft in zip(step.asks, step.drafts, strict=True):
            course.written = len(ids) - course.first
            course.seconds += share
            course.invested += draft.invested

    def _compare(self, draft: Draft, written: Sequence[int]) -> None:
        schedule = self.schedule
        first = draft.considered[0] if draft.considered else None
        for guess in draft.ready:
            right = guess.token == written[0]
            if schedule.credit <= 0:
                schedule.miss(self._odds(guess), right)
            if first is None or first.source != guess.source:
                schedule.note(guess.source, guess.trust, right)
        if draft.considered:
            schedule.learn(draft.considered, written)
        if first is not None and first.source in self._paid_names:
            schedule.note(first.source, NEXT, first.token == written[0])

    def end(self, state: Course) -> None:
        if state.written:
            self.schedule.lengths.add(state.written)
        for drafter, own in state.states.items():
            drafter.end(own)

    def close(self) -> None:
        for drafter in self._drafters:
            drafter.close()


def _reviews(drafter: Drafter) -> str:
    """The source under which it is counted how often `drafter` confirms others."""
    return f"{drafter.name} reviewing"
