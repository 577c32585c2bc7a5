"""What a sequence leaves behind for its next step: the states of a plan, one for each node that has one.

A state has a slot for each sequence. Its memory is asked for before anything is allocated (`Description`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

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


@runtime_checkable
class Saved(Protocol):
    """A state that can be taken out of a slot and put back."""

    parts: int  # arrays that it is saved as

    def save(self, slot: int, length: int) -> list[np.ndarray]:
        """Copies of what the first `length` positions of a slot are; none where that cannot be told apart."""
        ...

    def load(self, slot: int, arrays: Sequence[np.ndarray]) -> None:
        """The slot holds what was saved. ValueError where shapes or types are not its own."""
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


def save(states: Iterable[State], slot: int, length: int) -> list[np.ndarray]:
    """Copies of the first `length` positions of a slot in all states; none where one of them has no such."""
    found = []
    for state in states:
        parts = state.save(slot, length) if isinstance(state, Saved) else []
        if not parts:
            return []
        found += parts
    return found


def load(states: Sequence[State], slot: int, arrays: Sequence[np.ndarray]) -> None:
    """What `save` gave is in the slot. ValueError where it is of other states."""
    at = 0
    for state in states:
        if not isinstance(state, Saved):
            raise ValueError("a state that cannot be put back")
        state.load(slot, arrays[at : at + state.parts])
        at += state.parts
    if at != len(arrays):
        raise ValueError(f"{len(arrays)} arrays are not of {len(states)} states")


def put_back(targets: Sequence[np.ndarray], arrays: Sequence[np.ndarray]) -> None:
    """Each array into the beginning of its target, along every axis; the reverse of slicing and copying.

    ValueError where one does not fit.
    """
    if len(targets) != len(arrays):
        raise ValueError(f"{len(arrays)} arrays are not of a state of {len(targets)}")
    for target, array in zip(targets, arrays, strict=True):
        fits = target.ndim == array.ndim and all(
            a <= b for a, b in zip(array.shape, target.shape, strict=True)
        )
        if array.dtype != target.dtype or not fits:
            raise ValueError(f"{array.dtype} {array.shape} does not fit {target.dtype} {target.shape}")
        target[tuple(map(slice, array.shape))] = array
