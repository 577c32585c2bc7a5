"""The K/V cache of one sequence: float32, keys transposed in blocks of 16 positions."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

from kernels_arm.layout import padded

BLOCK = 16


class KVCache:
    """Keys float32 [layers, g, context/16, d, 16] and values float32 [layers, g, context, d padded to 16]."""

    def __init__(self, layers: int, groups: int, size: int, context: int):
        self.context = padded(context, BLOCK)
        self.keys = _zeros((layers, groups, self.context // BLOCK, size, BLOCK))
        self.values = _zeros((layers, groups, self.context, padded(size, BLOCK)))

    @staticmethod
    def bytes_needed(layers: int, groups: int, size: int, context: int) -> int:
        return 4 * layers * groups * padded(context, BLOCK) * (size + padded(size, BLOCK))


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Zeroed pages that take memory only when written.

    Not huge pages: a short conversation touches a little of every layer, and 2 MB pages would make all of
    it resident
    (SmolLM2 at 4096 tokens: 188 MB instead of 6).
    """
    pages = mmap.mmap(-1, 4 * int(np.prod(shape)))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, np.float32).reshape(shape)
