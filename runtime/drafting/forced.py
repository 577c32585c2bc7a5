"""Drafts for nothing: what the constraint of an answer leaves no choice about, `{"name": "` for instance."""

from __future__ import annotations

from collections.abc import Sequence

from flatlm.runtime.drafting import Guess, Known, Odds, Offer, Place, Rule
from flatlm.runtime.generation.constraint import Constraint

ASSUMED: Odds = {0: 1.0}


class Forced:
    """A drafter that only knows constraints; an answer without one has nothing of it."""

    name = "grammar"
    assumed = ASSUMED
    costs = None
    passes = 0
    seconds = loading = 0.0

    def begin(self, rule: Rule) -> Constraint | None:
        """Its state is the constraint."""
        return rule.constraint

    def offer(self, place: Place, known: Known) -> Offer | None:
        if place.state is None:
            return None
        (guesses,) = self.draft([Offer(place)])
        return Offer(place, guesses) if guesses else None

    def draft(self, offers: Sequence[Offer]) -> list[list[Guess]]:
        """What must follow at each place."""
        return [
            [Guess(token, self.name) for token in place.state.forced(place.ids)[: place.n]]
            if place.state
            else []
            for place, *_ in offers
        ]

    def read(self, offer: Offer) -> None:
        """There is nothing to read."""

    def end(self, state: Constraint | None) -> None:
        """Nothing is held open."""

    def close(self) -> None:
        """Nothing is held open."""
