"""The plug point for what proposes tokens: one protocol, one file a drafter. More in docs/drafting.md.

A drafter guesses how a sequence goes on; the target reads all guesses in one pass and keeps those that it
would have written itself. Guesses decide how fast an answer comes, never what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from flatlm.runtime.generation.sampler import Law


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


class Drafter(Protocol):
    """Guesses how a sequence goes on."""

    name: str

    @property
    def passes(self) -> int:
        """Forward passes of its models so far; 0 for a drafter without one."""
        ...

    @property
    def seconds(self) -> float:
        """What those took."""
        ...

    def begin(self, choose: Choose) -> None:
        """A new answer starts, in which models write what `choose` says."""
        ...

    def propose(self, ids: Sequence[int], n: int) -> list[Guess]:
        """At most `n` tokens that may follow `ids`, the whole sequence; fewer or none where it knows nothing.

        Calls need not continue each other: what a drafter holds of an earlier sequence it cuts back itself.
        """
        ...

    def close(self) -> None: ...
