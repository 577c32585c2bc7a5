"""The last inputs of a short convolution, as many as its taps reach back and a step may be cut back by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.ops import KEPT
from flatlm.runtime.states import put_back
from flatlm.runtime.states.floors import Floors
from flatlm.runtime.states.pages import zeroed

BLOCK = 16


@dataclass(frozen=True, slots=True)
class ConvRows:
    """Of `channels`, each with `taps` weights."""

    channels: int
    taps: int

    def bytes(self, context: int) -> int:
        return 4 * (KEPT + self.taps - 1) * padded(self.channels, BLOCK)

    def allocate(self, context: int, slots: int, floors: Floors | None = None) -> ConvState:
        return ConvState(self, context, slots, floors or Floors(slots))


class ConvState:
    """Rows float32 [slots, KEPT + taps − 1, c padded to 16]: that of position p at p modulo their number."""

    parts = 2

    def __init__(self, of: ConvRows, context: int, slots: int, floors: Floors) -> None:
        self.context, self.floors = context, floors
        floors.sums = True
        self.rows = zeroed((slots, KEPT + of.taps - 1, padded(of.channels, BLOCK)), np.float32)

    def copy(self, source: int, target: int, length: int) -> None:
        """Slot `target` gets all that slot `source` holds."""
        self.rows[target] = self.rows[source]
        self.floors.copy(source, target)

    def save(self, slot: int, length: int) -> list[np.ndarray]:
        floor = self.floors.save(slot, length)
        return [] if floor is None else [self.rows[slot].copy(), floor]

    def load(self, slot: int, arrays: Sequence[np.ndarray]) -> None:
        put_back([self.rows[slot], self.floors.array[slot]], arrays)

    def cut_back(self, slot: int, length: int) -> int:
        """What lies beyond is overwritten before it is seen, and what lies before position 0 is not read."""
        return self.floors.cut_back(slot, length)

    def fields(self, prefix: str) -> dict[str, int]:
        return {f"{prefix}_ROWS": self.rows.ctypes.data}
