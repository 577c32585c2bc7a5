"""What backends have in common that compute one sequence after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from flatlm.runtime.backends import Segment, check_fit, check_ids


class OneByOne(ABC):
    """A step of several sequences as a step of each. A backend says what that is."""

    context: int
    vocab: int
    positions: list[int]

    @property
    def position(self) -> int:
        return self.positions[0]

    def forward(self, ids: np.ndarray, logits: int = 1) -> np.ndarray:
        return self.forward_many([Segment(0, ids, logits)])[0]

    def forward_many(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        check_fit(self.positions, self.context, segments)
        check_ids(self.vocab, segments)
        return [self.step(s.slot, np.ascontiguousarray(s.ids, np.int64), s.logits) for s in segments]

    @abstractmethod
    def step(self, slot: int, ids: np.ndarray, logits: int) -> np.ndarray:
        """Appends ids int64 [m] to one sequence; returns float32 [min(logits, m), vocab]."""
