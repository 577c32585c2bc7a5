"""How far the states of a plan that sum up their past are summed up, and so how far back they can be cut.

A step of up to KEPT tokens can be cut back to any of them, a longer one to its last KEPT. Nothing is undone:
what belongs to those tokens stands beside the sums until the next step, which adds what then still holds.
"""

from __future__ import annotations

import numpy as np

from flatlm.kernels_arm.ops import KEPT
from flatlm.runtime.states.places import Places


class Floors:
    """Of `slots` sequences: int64 [slots, 3], the floor, which half of the kept keys is in use, and how many
    positions were ever written.

    One for all states of a plan: the step's last record, SETTLE, moves it.
    """

    def __init__(self, slots: int) -> None:
        self.array = np.zeros((slots, 3), np.int64)
        self.sums = False  # whether a state of the plan sums up: else there is no floor

    def of(self, slot: int) -> int:
        """Positions that are summed up."""
        return int(self.array[slot, 0]) if self.sums else 0

    def copy(self, source: int, target: int) -> None:
        self.array[target] = self.array[source]

    def save(self, slot: int, length: int) -> np.ndarray | None:
        """Copied, where a sequence of `length` positions can be gone on with."""
        return self.array[slot].copy() if length >= self.of(slot) else None

    def require(self, slot: int, length: int) -> None:
        """ValueError unless a sequence of `length` positions may stand on this floor: kernels trust it."""
        floor, half, _ = self.array[slot].tolist()
        if self.sums and (not 0 <= length - floor <= KEPT or floor < 0 or half not in (0, 1)):
            raise ValueError(f"{length} positions do not fit states summed up to {floor}")

    def cut_back(self, slot: int, length: int) -> int:
        """`length`, or 0 where that is below the floor: then all must be read again."""
        if length < self.of(slot) or length == 0:
            self._begin(slot)
            return 0
        return length

    def save_ring(self, slot: int, length: int, places: Places) -> np.ndarray | None:
        """Copied, where the window before a position `length` is there."""
        there = places.cut_back(int(self.array[slot, 2]), length) == length
        return self.array[slot].copy() if there else None

    def cut_ring(self, slot: int, length: int, places: Places) -> int:
        """`length`, or 0 where the window before it is gone."""
        kept = places.cut_back(int(self.array[slot, 2]), length)
        if not kept:
            self._begin(slot)
        return kept

    def _begin(self, slot: int) -> None:
        self.array[slot, 0] = self.array[slot, 2] = 0
