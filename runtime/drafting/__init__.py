"""The plug point for what proposes tokens: one protocol, one file a drafter. More in docs/drafting.md.

A drafter guesses how sequences go on; the target reads all guesses in one pass and keeps those that it would
have written itself. Guesses decide how fast an answer comes, never what it says.

A drafter *makes offers*: how likely its next tokens are right at a place, and what they cost. Who composes a
draft (`auto`, by what pays; `cascade`, by a matrix) takes the best and has them drafted, those of several
sequences at once. It knows no drafter by its class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from flatlm.runtime.generation.constraint import Constraint
from flatlm.runtime.generation.sampler import Law
from flatlm.runtime.options import SamplingOptions

if TYPE_CHECKING:
    from flatlm.runtime.drafting.costs import Costs

NEXT = -1  # the class of trust "whatever this drafter guesses next", asked before it has guessed

Odds = dict[int, float]  # by class of trust: what is assumed before anything was counted


class Guess(NamedTuple):
    """One proposed token."""

    token: int
    source: str  # the name of the drafter whose choice it is
    chance: float = 1.0  # the probability its source gives it
    trust: int = 0  # the class of guesses, within a source, that are right about equally often
    law: Law | None = None  # what it was drawn from; None: nothing was left to chance


# What a drafting model writes after a history, given its logits [n], that history and the ids [n] they belong
# to, ascending: the id, and its law if it was drawn.
Choose = Callable[[np.ndarray, Sequence[int], np.ndarray], tuple[int, Law | None]]

# What the target writes after a history where a guess was made, given its logits [V].
Judge = Callable[[np.ndarray, Sequence[int], Guess | None], int]


class Rule(NamedTuple):
    """How drafting models choose and how the target judges: see verify.py.

    `options` are what both follow, seed and all: what a drafter in another place needs to choose the same.
    `constraint` says what may follow, where not all may; both keep to it.
    """

    choose: Choose
    judge: Judge
    options: SamplingOptions = SamplingOptions()
    constraint: Constraint | None = None


class Known(Protocol):
    """What was counted and measured so far, for whoever makes an offer."""

    def right(self, drafter: Drafter) -> float:
        """The chance that whatever `drafter` guesses next is right."""
        ...

    def agrees(self, drafter: Drafter, guess: Guess) -> float:
        """The chance that `drafter` would guess the same."""
        ...

    def plain(self) -> float:
        """Seconds of the target's pass over one row."""
        ...


class Place(NamedTuple):
    """Where a draft could go on: after `ids`, by at most `n` tokens."""

    state: Any  # the drafter's own, of this sequence
    ids: list[int]
    n: int
    at_hand: Sequence[Guess] = ()  # what another drafter says here, to be reviewed


class Offer(NamedTuple):
    """What a drafter would do at a place. Without `guesses` it has to make a pass first."""

    place: Place
    guesses: Sequence[Guess] = ()  # those it has at hand: they cost nothing
    chances: Sequence[float] = ()  # of each next token to be right where those before it are
    reviewed: Sequence[Guess] = ()  # of what was at hand, the part that it looks at first
    rows: int = 0  # of its pass, which it shares with other sequences
    tokens: float = 1.0  # that the pass is expected to bring
    unread: int = 0  # tokens it has to read before
    invested: float = 0.0  # seconds that takes; they serve later steps too
    lenience: float = 1.0  # of a review: see ModelDrafter


class Drafter(Protocol):
    """Guesses how sequences go on."""

    name: str
    assumed: Odds
    passes: int  # so far
    seconds: float  # that those took
    loading: float  # of these, what only a first pass takes

    @property
    def costs(self) -> Costs | None:
        """Of its passes by rows; None: it guesses without any, in no time to speak of."""
        ...

    def begin(self, rule: Rule) -> Any:
        """A new answer starts, written by `rule` with the options it names: its state."""
        ...

    def offer(self, place: Place, known: Known) -> Offer | None:
        """What it can do there; None where it knows nothing."""
        ...

    def draft(self, offers: Sequence[Offer]) -> list[list[Guess]]:
        """The tokens of each, of all in one pass; none where it knows nothing after all."""
        ...

    def read(self, offer: Offer) -> None:
        """Read a part of what an offer would invest in, to see what that costs."""
        ...

    def end(self, state: Any) -> None:
        """The answer has ended."""
        ...

    def close(self) -> None: ...


class Ask(NamedTuple):
    """A sequence that wants a draft."""

    state: Any  # what the composer's `begin` gave
    ids: list[int]  # the sequence's own: when the step has ended, with what was written
    n: int  # most tokens


@dataclass
class Draft:
    """What was thought of for one sequence in one step, from being proposed to being learned from."""

    guesses: list[Guess] = field(default_factory=list)  # what the target reads
    considered: list[Guess] = field(default_factory=list)  # what was thought of, read or not
    ready: list[Guess] = field(default_factory=list)  # what each drafter without costs said at first
    passes: dict[str, int] = field(default_factory=dict)  # of drafters, that this sequence took part in
    seconds: dict[str, float] = field(default_factory=dict)  # its share of them
    loading: float = 0.0  # of these: see Drafter
    invested: float = 0.0  # of these, for later steps too


@dataclass(frozen=True)
class Outcome:
    """How a step ended: of each sequence what was asked, drafted and written, and the seconds it took."""

    asks: Sequence[Ask]  # their ids with what was written
    drafts: Sequence[Draft]
    written: Sequence[Sequence[int]]
    target_seconds: float  # of the target's pass
    seconds: float  # of all


class Composer(Protocol):
    """Makes drafts of what drafters offer."""

    def begin(self, rule: Rule) -> Any:
        """A new answer starts: its state."""
        ...

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        """Drafts for sequences that are computed in one step."""
        ...

    def learn(self, step: Outcome) -> None:
        """A step has ended."""
        ...

    def end(self, state: Any) -> None:
        """The answer has ended."""
        ...

    def close(self) -> None: ...


def carry_out(drafter: Drafter, offers: Sequence[Offer], drafts: Sequence[Draft]) -> list[list[Guess]]:
    """What `drafter` drafts of its offers, its passes booked to the draft that each offer is for."""
    if drafter.costs is None:
        return drafter.draft(offers)
    passes, seconds, loading = drafter.passes, drafter.seconds, drafter.loading
    found = drafter.draft(offers)
    book(drafter, drafts, passes, seconds, loading)
    return found


def book(drafter: Drafter, drafts: Sequence[Draft], passes: int, seconds: float, loading: float) -> None:
    """What `drafter` did since its counters were these, to `drafts`."""
    name, share = drafter.name, 1 / len(drafts)
    passes, seconds = drafter.passes - passes, (drafter.seconds - seconds) * share
    loading = (drafter.loading - loading) * share
    for draft in drafts:
        draft.passes[name] = draft.passes.get(name, 0) + passes
        draft.seconds[name] = draft.seconds.get(name, 0.0) + seconds
        draft.loading += loading
