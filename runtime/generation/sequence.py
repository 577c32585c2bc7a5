"""Sequences of ids and the slots of a backend that hold what was computed of them.

A slot keeps what it holds when its sequence has ended: a new one begins with as much of its ids as any slot
holds, whoever computed that. A backend may know more of a sequence than is noted here, where an interrupt
fell between the two, and never less; before it computes, it is cut back. A state that cannot be cut back to
just there keeps less, and what is missing is read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from flatlm.runtime.backends import Segment

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend

PREFILL_CHUNK = 128  # tokens read at once: weights are read once per chunk, Ctrl-C waits for one
NOWHERE = -1


class Shelf(Protocol):
    """Where sequences stay that lose their slot: `prefixes.Prefixes`."""

    def keep(self, slot: int, ids: Sequence[int]) -> None:
        """The slot holds `ids`, and may lose them."""
        ...

    def longest(self, ids: Sequence[int]) -> tuple[Any, int]:
        """What is kept of the most of the first `ids`, and how many those are; None, 0 where nothing is."""
        ...

    def load(self, entry: Any, slot: int) -> bool:
        """The slot holds what was kept; False where that is gone, and the slot holds nothing that counts."""
        ...


@dataclass(eq=False)
class TokenSequence:
    """Ids, of which the first `read` are in the state of a slot."""

    ids: list[int]
    slot: int = NOWHERE
    read: int = 0

    def become(self, ids: list[int], least: int = 1) -> None:
        """Be `ids`, of which at least the last `least` are left to be read: their logits are needed."""
        self.read = min(self.read, common_start(self.ids, ids), len(ids) - least)
        self.ids = ids


class Slots:
    """The slots of `backend`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._last = [TokenSequence([]) for _ in range(backend.slots)]  # that each slot was given to
        self._ended = [0] * backend.slots  # when that one left
        self._count = 0  # of those that left
        self.prefixes: Shelf | None = None  # where sequences stay whose slot another needs

    def held(self, slot: int = 0) -> list[int]:
        """The ids that the state of a slot consists of."""
        last = self._last[slot]
        return last.ids[: min(last.read, self._backend.positions[slot])]

    def free(self) -> list[int]:
        """Slots without a sequence."""
        return [slot for slot, last in enumerate(self._last) if last.slot == NOWHERE]

    def known(self, ids: Sequence[int]) -> list[int]:
        """By slot, how many of the first `ids` it holds; not the last one, whose logits are needed."""
        return [
            min(common_start(last.ids, ids), last.read, position, len(ids) - 1)
            for last, position in zip(self._last, self._backend.positions, strict=True)
        ]

    def place(self, sequence: TokenSequence) -> None:
        """Give it a slot, of which one must be free, and what some slot holds of its ids."""
        known, free = self.known(sequence.ids), self.free()
        most = max(known)
        own = [slot for slot in free if known[slot] == most == self._last[slot].read]  # nothing is lost there
        slot = own[0] if own else min(free, key=lambda slot: self._ended[slot])
        if self.prefixes is not None:
            most = self._fetched(self.prefixes, sequence.ids, slot, known, most)
        self._last[slot] = sequence  # nothing of it is there yet
        if known[slot] < most:
            self._backend.copy(known.index(most), slot, most)
        sequence.read, sequence.slot = self._backend.truncate(most, slot), slot

    def _fetched(self, prefixes: Shelf, ids: Sequence[int], slot: int, known: list[int], most: int) -> int:
        """Keep what the slot is about to lose, and put there what was kept of `ids` where that is more than
        any slot holds; returns how much that is, and notes it in `known`.
        """
        held = self.held(slot)
        if known[slot] < len(held):
            prefixes.keep(slot, held)
        entry, length = prefixes.longest(ids[:-1])
        if entry is not None and length > most:
            if prefixes.load(entry, slot):
                known[slot] = most = length
            else:
                known[slot] = self._backend.truncate(0, slot)
                most = max(known)
        return most

    def keep_all(self) -> None:
        """Keep what slots hold that have no sequence now: the process may end."""
        if self.prefixes is not None:
            for slot in self.free():
                self.prefixes.keep(slot, self.held(slot))

    def leave(self, sequence: TokenSequence) -> None:
        """Its slot is free for others."""
        if sequence.slot != NOWHERE:
            self._count += 1
            self._ended[sequence.slot], sequence.slot = self._count, NOWHERE

    def rest(self, sequence: TokenSequence, most: int) -> Segment:
        """The next `most` of the ids that are not read, with logits if that is all of them."""
        self.cut_back(sequence)
        ids, read = sequence.ids, sequence.read
        fed = ids[read : read + most]
        return Segment(sequence.slot, fed, 1 if read + len(fed) == len(ids) else 0)

    def unread(self, sequence: TokenSequence, logits: int, more: Sequence[int] = ()) -> Segment:
        """All ids that are not read and `more` after them, with the last `logits` rows of logits."""
        self.cut_back(sequence)
        return Segment(sequence.slot, [*sequence.ids[sequence.read :], *more], logits)

    def cut_back(self, sequence: TokenSequence) -> None:
        """Let the state hold what is noted as read, or less where it can only keep less."""
        if self._backend.positions[sequence.slot] != sequence.read:
            sequence.read = self._backend.truncate(sequence.read, sequence.slot)


def common_start(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first ids are the same: halved, since Python compares lists without a loop of ours."""
    a = a if isinstance(a, list) else list(a)
    b = b if isinstance(b, list) else list(b)
    same, most = 0, min(len(a), len(b))
    if a[:most] == b[:most]:
        return most
    while most - same > 1:  # the first `same` are the same, the first `most` are not
        middle = (same + most) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            most = middle
    return same
