"""The matrices of linear attention, and the updates of the last step, added when the next begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.ops import KEPT, VALUE_BLOCK
from flatlm.runtime.states import put_back
from flatlm.runtime.states.floors import Floors
from flatlm.runtime.states.pages import zeroed

BLOCK = 16
BESIDE = 16  # columns beside an update of a block: the factor by which the matrix fades


@dataclass(frozen=True, slots=True)
class Matrices:
    """Of `heads`, each `key_size` × `value_size`; `key_heads` have keys of their own."""

    heads: int
    key_heads: int
    key_size: int
    value_size: int

    def shapes(self, slots: int) -> dict[str, tuple[int, ...]]:
        blocks, rows = padded(self.value_size, VALUE_BLOCK) // VALUE_BLOCK, padded(self.key_size, BLOCK)
        return {
            "sums": (slots, self.heads, blocks, rows, VALUE_BLOCK),
            "keys": (slots, 2, KEPT, self.key_heads, rows),
            "updates": (slots, self.heads, blocks, KEPT, VALUE_BLOCK + BESIDE),
        }

    def bytes(self, context: int) -> int:
        return sum(4 * int(np.prod(shape)) for shape in self.shapes(1).values())

    def allocate(self, context: int, slots: int, floors: Floors | None = None) -> MatrixState:
        return MatrixState(self, context, slots, floors or Floors(slots))


class MatrixState:
    """What kernels_arm/linear_attention.py has for each slot, all float32."""

    parts = 4

    def __init__(self, of: Matrices, context: int, slots: int, floors: Floors) -> None:
        self.context, self.floors = context, floors
        floors.sums = True
        shapes = of.shapes(slots)
        self.sums, self.keys, self.updates = (zeroed(shape, np.float32) for shape in shapes.values())

    def copy(self, source: int, target: int, length: int) -> None:
        """Slot `target` gets all that slot `source` holds."""
        for array in (self.sums, self.keys, self.updates):
            array[target] = array[source]
        self.floors.copy(source, target)

    def save(self, slot: int, length: int) -> list[np.ndarray]:
        floor = self.floors.save(slot, length)
        held = (self.sums, self.keys, self.updates)
        return [] if floor is None else [*(array[slot].copy() for array in held), floor]

    def load(self, slot: int, arrays: Sequence[np.ndarray]) -> None:
        held = (self.sums, self.keys, self.updates, self.floors.array)
        put_back([array[slot] for array in held], arrays)

    def cut_back(self, slot: int, length: int) -> int:
        """Updates beyond `length` are not added; from a floor beyond it there is no way back but to zeros."""
        kept = self.floors.cut_back(slot, length)
        if kept == 0:
            self.sums[slot] = 0
        return kept

    def fields(self, prefix: str) -> dict[str, int]:
        return {
            f"{prefix}_STATE": self.sums.ctypes.data,
            f"{prefix}_KEYS": self.keys.ctypes.data,
            f"{prefix}_UPDATES": self.updates.ctypes.data,
            f"{prefix}_FLOORS": self.floors.array.ctypes.data,
        }
