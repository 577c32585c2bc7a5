"""What a sequence leaves behind for its next step: the states of a plan, one for each node that has one.

A state has a slot for each sequence. Its memory is asked for before anything is allocated (`Description`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from flatlm.runtime.states.floors import Floors


class State(Protocol):
    """Slots of one node, as its kernels read them."""

    context: int  # positions of a slot, at least as many as were asked for

    def copy(self, source: int, target: int, length: int) -> None:
        """Slot `target` becomes the first `length` positions of slot `source`, or more: it is cut then."""
        ...

    def cut_back(self, slot: int, length: int) -> int:
        """Forget what the slot holds beyond `length` positions; returns how many it then holds.

        A state that cannot be cut back to just there returns fewer, 0 at worst: the rest is read again.
        """
        ...

    def fields(self, prefix: str) -> dict[str, int]:
        """Addresses and sizes for the records whose fields of ops.py begin with `prefix`."""
        ...


class Description(Protocol):
    """A state that is not allocated yet."""

    def bytes(self, context: int) -> int:
        """Of one slot."""
        ...

    def allocate(self, context: int, slots: int, floors: Floors | None = None) -> State:
        """`floors`: of the plan's states that sum up their past, where it has several."""
        ...


def cut_back(states: Iterable[State], slot: int, length: int) -> int:
    """Cut all states of a slot back to `length` positions, or to the most below it that each can hold."""
    states = list(states)
    while (kept := min((state.cut_back(slot, length) for state in states), default=length)) < length:
        length = kept  # what others hold beyond it goes, too
    return kept
