"""What was computed of beginnings of sequences that have no slot any more: in memory, and on disk if wanted.

A slot that is given to another sequence loses what it held. Here that is kept as copies of its states: a
conversation whose slot somebody else had goes on as if nobody had, and a system prompt is read once a device
and not once a start. Entries are found by their ids, the least recently used ones leave first, both places
have a limit. Reuse is exact: the states are the very bytes that were computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from flatlm.runtime.generation.sequence import common_start

if TYPE_CHECKING:
    from flatlm.runtime.generation.prefix_files import PrefixFiles

LEAST = 64  # tokens that are worth a copy: reading as many takes a step


@runtime_checkable
class Saving(Protocol):
    """A backend whose sequences can be taken out and put back."""

    def save(self, slot: int, length: int) -> list[np.ndarray]:
        """Copies of what the first `length` tokens of a sequence are; none where its states have no such."""
        ...

    def load(self, slot: int, length: int, arrays: Sequence[np.ndarray]) -> None:
        """The sequence becomes what was saved; ValueError where that is not of this model."""
        ...


@dataclass(eq=False)
class Entry:
    """`ids` and the states after them; without `arrays` it is on disk only."""

    ids: list[int]
    arrays: list[np.ndarray] = field(default_factory=list)
    name: str = ""  # of its file

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


class Prefixes:
    """Entries of one model; the last of the list was used last."""

    def __init__(self, backend: Saving, most_bytes: int, files: PrefixFiles | None = None) -> None:
        self._backend, self._most, self._files = backend, most_bytes, files
        self._entries = [] if files is None else [Entry(ids, name=name) for name, ids in files.known()]

    @property
    def bytes(self) -> int:
        """In memory."""
        return sum(entry.bytes for entry in self._entries)

    def longest(self, ids: Sequence[int]) -> tuple[Entry | None, int]:
        """The entry that holds the most of the first `ids`, and how many those are."""
        best, most = None, 0
        for entry in self._entries:
            length = common_start(entry.ids, ids)
            if length >= most and length:
                best, most = entry, length
        return best, most

    def keep(self, slot: int, ids: Sequence[int]) -> None:
        """The slot holds `ids`, and may lose them. What an entry has already is not copied again."""
        if len(ids) < LEAST or self.longest(ids)[1] == len(ids):
            return
        arrays = self._backend.save(slot, len(ids))
        size = sum(array.nbytes for array in arrays)
        if not arrays or (size > self._most and self._files is None):
            return
        entry = Entry(list(ids), arrays)
        covered = [one for one in self._entries if common_start(one.ids, ids) == len(one.ids)]
        self._entries = [one for one in self._entries if one not in covered] + [entry]
        if self._files is not None:
            entry.name = self._files.write(entry.ids, arrays)
            for one in covered:
                self._files.remove(one.name)
        self._shrink()

    def load(self, entry: Entry, slot: int) -> bool:
        """The slot holds what the entry does; False where it is gone or damaged, and the slot holds nothing
        that counts.
        """
        self._entries.remove(entry)
        if not entry.arrays and self._files is not None:
            entry.arrays = self._files.read(entry.name, entry.ids)
        try:
            if not entry.arrays:
                raise ValueError("it is gone")
            self._backend.load(slot, len(entry.ids), entry.arrays)
        except ValueError:
            if self._files is not None:
                self._files.remove(entry.name)
            return False
        self._entries.append(entry)
        self._shrink()
        return True

    def _shrink(self) -> None:
        """Let go of what was used longest ago, until the rest fits."""
        left = self._most
        for entry in reversed(self._entries):
            left -= entry.bytes
            if left < 0:
                left += entry.bytes
                entry.arrays = []
        self._entries = [one for one in self._entries if one.arrays or one.name]
