"""What an answer may say next: the ids that a sampler may choose from.

A constraint is asked of a history, and not told what was written: drafters ask about ids that may never be,
the target about those it keeps, and both get the same answer for the same ids. So a constrained answer is the
same drafted or not, and beside others or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from flatlm.runtime.generation.sampler import Law, Sampler, find, next_law, noise_key, race
from flatlm.runtime.options import SamplingOptions


class Constraint(Protocol):
    """What may follow in one answer. A history is its prompt and its ids so far."""

    failed: str  # why it cannot go on: then only an end is allowed; empty while it can

    def allowed(self, history: Sequence[int]) -> np.ndarray | None:
        """The ids that may follow, ascending, at least one; None where `history` is not allowed itself."""
        ...

    def takes(self, history: Sequence[int], ids: Sequence[int] | np.ndarray) -> int:
        """How many of `ids`, one after the other, may follow."""
        ...

    def forced(self, history: Sequence[int]) -> list[int]:
        """The ids that must follow: at each place the only one that may."""
        ...


def permitted(
    constraint: Constraint, logits: np.ndarray, history: Sequence[int], ids: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The part of logits (of `ids`: see Sampler) that belongs to ids that may follow, and these.

    Where none of `ids` may, one that may, whatever its logit: a drafter has to say something.
    """
    allowed = constraint.allowed(history)
    if allowed is None:
        return logits, ids
    if ids is None:
        return logits[allowed], allowed
    places, there = find(ids, allowed)
    if not there.any():
        return np.zeros(1, np.float32), allowed[:1]
    return logits[places[there]], allowed[there]


def held_law(
    constraint: Constraint,
    logits: np.ndarray,
    history: Sequence[int],
    options: SamplingOptions,
    ids: np.ndarray | None = None,
) -> Law:
    """What a sampler of `options` draws from among the ids that may follow.

    Where all logits together leave one id, it is the only one of fewer as well; so if that may follow, none
    of the others is asked about, which is most of the cost.
    """
    law = next_law(logits, history, options, ids)
    if len(law[0]) == 1 and constraint.takes(history, law[0]):
        return law
    some, among = permitted(constraint, logits, history, ids)
    return next_law(some, history, options, among)


def constrained(options: SamplingOptions, constraint: Constraint) -> Sampler:
    """A sampler among the ids that may follow. `options` have a seed."""

    def sample(logits: np.ndarray, history: Sequence[int], ids: np.ndarray | None = None) -> int:
        return race(
            held_law(constraint, logits, history, options, ids), noise_key(options.seed, len(history))
        )

    return sample
