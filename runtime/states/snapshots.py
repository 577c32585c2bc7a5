"""States of a sequence that cannot be cut back, kept as the last step found them and as it left them."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Snapshots(Generic[T]):
    """By name. A state is replaced by each step and never changed, so a snapshot is a reference."""

    def __init__(self) -> None:
        self.now: dict[str, T] = {}
        self._before: dict[str, T] = {}
        self._position = 0  # tokens that `_before` has seen

    def begin(self, position: int) -> None:
        """A step of a sequence that holds `position` tokens."""
        self._before, self._position = dict(self.now), position

    def cut_back(self, length: int) -> int:
        """From a sequence that is longer than `length`; returns how much of it is left."""
        if not self.now:
            return length
        if length < self._position:
            self._before, self._position = {}, 0
        self.now = dict(self._before)
        return self._position

    def copy(self) -> Snapshots[T]:
        made = Snapshots[T]()
        made.now, made._before, made._position = dict(self.now), dict(self._before), self._position
        return made
