"""The K/V cache of a layer in float32, in the order in which the kernels read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.kernels_arm.layout import padded
from flatlm.runtime.states import put_back
from flatlm.runtime.states.floors import Floors
from flatlm.runtime.states.pages import zeroed
from flatlm.runtime.states.places import places

BLOCK = 16


@dataclass(frozen=True, slots=True)
class FloatKV:
    """Of `groups` key/value heads of `size` columns."""

    groups: int
    size: int
    window: int = 0  # positions that a query sees; 0: all

    def bytes(self, context: int) -> int:
        memory = places(context, self.window, BLOCK, runs=True).memory
        return 4 * self.groups * memory * (self.size + padded(self.size, BLOCK))

    def allocate(self, context: int, slots: int, floors: Floors | None = None) -> FloatCache:
        return FloatCache(self.groups, self.size, context, slots, self.window, floors)


class FloatCache:
    """Keys float32 [slots, g, context/16, d, 16], values float32 [slots, g, context, d padded to 16]."""

    def __init__(
        self,
        groups: int,
        size: int,
        context: int,
        slots: int = 1,
        window: int = 0,
        floors: Floors | None = None,
    ) -> None:
        self._places = places(context, window, BLOCK, runs=True)
        self.context = self._places.memory
        self.floors = (floors or Floors(slots)) if self._places.reach else None
        self.parts = 3 if self.floors else 2
        self.keys = zeroed((slots, groups, self.context // BLOCK, size, BLOCK), np.float32)
        self.values = zeroed((slots, groups, self.context, padded(size, BLOCK)), np.float32)

    def copy(self, source: int, target: int, length: int) -> None:
        """Slot `target` gets the first `length` positions of slot `source`, of a ring all."""
        if self.floors:
            self.floors.copy(source, target)
            length = self.context
        blocks = -(-length // BLOCK)
        self.keys[target, :, :blocks] = self.keys[source, :, :blocks]
        self.values[target, :, :length] = self.values[source, :, :length]

    def save(self, slot: int, length: int) -> list[np.ndarray]:
        """What lies beyond the length in the last block of keys is overwritten before it is seen."""
        if self.floors:
            floor = self.floors.save_ring(slot, length, self._places)
            return [] if floor is None else [self.keys[slot].copy(), self.values[slot].copy(), floor]
        return [self.keys[slot, :, : -(-length // BLOCK)].copy(), self.values[slot, :, :length].copy()]

    def load(self, slot: int, arrays: Sequence[np.ndarray]) -> None:
        floors = [self.floors.array[slot]] if self.floors else []
        put_back([self.keys[slot], self.values[slot], *floors], arrays)

    def cut_back(self, slot: int, length: int) -> int:
        """What lies beyond is overwritten before it is seen; of a ring, the window before may be gone."""
        return self.floors.cut_ring(slot, length, self._places) if self.floors else length

    def fields(self, prefix: str) -> dict[str, int]:
        return {
            f"{prefix}_KEYS": self.keys.ctypes.data,
            f"{prefix}_VALUES": self.values.ctypes.data,
            f"{prefix}_CONTEXT": self.context,
            f"{prefix}_RING": self._places.ring,
        }
