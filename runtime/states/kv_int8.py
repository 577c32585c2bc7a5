"""The K/V cache of a layer in int8, a scale per token and head, in the order in which the kernels read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.ops import KV_BLOCK
from flatlm.runtime.states import put_back
from flatlm.runtime.states.floors import Floors
from flatlm.runtime.states.pages import zeroed
from flatlm.runtime.states.places import places

BLOCK = 16


@dataclass(frozen=True, slots=True)
class Int8KV:
    """Of `groups` key/value heads of `size` columns."""

    groups: int
    size: int
    window: int = 0  # positions that a query sees; 0: all

    def bytes(self, context: int) -> int:
        memory = places(context, self.window, KV_BLOCK, runs=False).memory
        return 2 * self.groups * memory * (padded(self.size, BLOCK) + 4)

    def allocate(self, context: int, slots: int, floors: Floors | None = None) -> Int8Cache:
        return Int8Cache(self.groups, self.size, context, slots, self.window, floors)


class Int8Cache:
    """Keys int8 [slots, g, context/16, d/4, 16, 4], values int8 [slots, g, context/256, d/16, 64, 16, 4] (d
    padded to 16), and a float32 scale per token and head of each, [slots, g, context].
    """

    def __init__(
        self,
        groups: int,
        size: int,
        context: int,
        slots: int = 1,
        window: int = 0,
        floors: Floors | None = None,
    ) -> None:
        self._places = places(context, window, KV_BLOCK, runs=False)
        self.floors = (floors or Floors(slots)) if self._places.reach else None
        self.parts = 5 if self.floors else 4
        self.context, width = self._places.memory, padded(size, BLOCK)
        panels, steps, blocks = width // BLOCK, KV_BLOCK // 4, self.context // KV_BLOCK
        self.keys = zeroed((slots, groups, self.context // BLOCK, width // 4, BLOCK, 4), np.int8)
        self.values = zeroed((slots, groups, blocks, panels, steps, BLOCK, 4), np.int8)
        self.key_scales = zeroed((slots, groups, self.context), np.float32)
        self.value_scales = zeroed((slots, groups, self.context), np.float32)

    def copy(self, source: int, target: int, length: int) -> None:
        """Slot `target` gets the first `length` positions of slot `source`, of a ring all."""
        if self.floors:
            self.floors.copy(source, target)
            length = self.context
        # of four positions; the rest of the last one is overwritten before it is seen
        steps = -(-length // 4)
        for block, start in enumerate(range(0, steps, KV_BLOCK // 4)):
            part = slice(0, min(steps - start, KV_BLOCK // 4))
            self.values[target, :, block, :, part] = self.values[source, :, block, :, part]
        blocks = -(-length // BLOCK)
        self.keys[target, :, :blocks] = self.keys[source, :, :blocks]
        for scales in (self.key_scales, self.value_scales):
            scales[target, :, :length] = scales[source, :, :length]

    def save(self, slot: int, length: int) -> list[np.ndarray]:
        """Whole blocks of keys and values: what lies beyond the length is overwritten before it is seen."""
        floors = []
        if self.floors:
            floor = self.floors.save_ring(slot, length, self._places)
            if floor is None:
                return []
            floors, length = [floor], self.context
        parts = [self.keys[slot, :, : -(-length // BLOCK)], self.values[slot, :, : -(-length // KV_BLOCK)]]
        scales = [self.key_scales[slot, :, :length], self.value_scales[slot, :, :length]]
        return [*(part.copy() for part in parts + scales), *floors]

    def load(self, slot: int, arrays: Sequence[np.ndarray]) -> None:
        parts = (self.keys, self.values, self.key_scales, self.value_scales)
        floors = [self.floors.array[slot]] if self.floors else []
        put_back([*(part[slot] for part in parts), *floors], arrays)

    def cut_back(self, slot: int, length: int) -> int:
        """What lies beyond is overwritten before it is seen; of a ring, the window before may be gone."""
        return self.floors.cut_ring(slot, length, self._places) if self.floors else length

    def fields(self, prefix: str) -> dict[str, int]:
        parts = ("keys", "key_scales", "values", "value_scales")
        addresses = {f"{prefix}_{name.upper()}": getattr(self, name).ctypes.data for name in parts}
        return {**addresses, f"{prefix}_CONTEXT": self.context}
