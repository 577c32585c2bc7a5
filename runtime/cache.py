"""The K/V caches of the sequences of a backend, float32 or int8, in the order in which the kernels read them.

Each sequence has a slot: a region for `context` positions in every layer. Its pages take memory when they are
written, not before.
"""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.ops import KV_BLOCK

BLOCK = 16


class FloatCache:
    """Keys float32 [layers, slots, g, context/16, d, 16], values float32 [layers, slots, g, context, d padded
    to 16].
    """

    def __init__(self, layers: int, groups: int, size: int, context: int, slots: int = 1):
        self.context = padded(context, BLOCK)
        self.keys = _zeros((layers, slots, groups, self.context // BLOCK, size, BLOCK), np.float32)
        self.values = _zeros((layers, slots, groups, self.context, padded(size, BLOCK)), np.float32)

    def copy(self, source: int, target: int, length: int) -> None:
        """Slot `target` gets the first `length` positions of slot `source`."""
        blocks = -(-length // BLOCK)
        self.keys[:, target, :, :blocks] = self.keys[:, source, :, :blocks]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]

    @staticmethod
    def bytes_needed(layers: int, groups: int, size: int, context: int) -> int:
        """Of one slot."""
        return 4 * layers * groups * padded(context, BLOCK) * (size + padded(size, BLOCK))


class Int8Cache:
    """Keys int8 [layers, slots, g, context/16, d/4, 16, 4], values int8 [layers, slots, g, context/256, d/16,
    64, 16, 4] (d padded to 16), and a float32 scale per token and head of each, [layers, slots, g, context].
    """

    def __init__(self, layers: int, groups: int, size: int, context: int, slots: int = 1):
        self.context, width = padded(context, KV_BLOCK), padded(size, BLOCK)
        panels, steps, blocks = width // BLOCK, KV_BLOCK // 4, self.context // KV_BLOCK
        self.keys = _zeros((layers, slots, groups, self.context // BLOCK, width // 4, BLOCK, 4), np.int8)
        self.values = _zeros((layers, slots, groups, blocks, panels, steps, BLOCK, 4), np.int8)
        self.key_scales = _zeros((layers, slots, groups, self.context), np.float32)
        self.value_scales = _zeros((layers, slots, groups, self.context), np.float32)

    def copy(self, source: int, target: int, length: int) -> None:
        """Slot `target` gets the first `length` positions of slot `source`."""
        steps = -(
            -length // 4
        )  # of four positions; the rest of the last one is overwritten before it is seen
        for block, start in enumerate(range(0, steps, KV_BLOCK // 4)):
            part = slice(0, min(steps - start, KV_BLOCK // 4))
            self.values[:, target, :, block, :, part] = self.values[:, source, :, block, :, part]
        blocks = -(-length // BLOCK)
        self.keys[:, target, :, :blocks] = self.keys[:, source, :, :blocks]
        for scales in (self.key_scales, self.value_scales):
            scales[:, target, :, :length] = scales[:, source, :, :length]

    @staticmethod
    def bytes_needed(layers: int, groups: int, size: int, context: int) -> int:
        """Of one slot."""
        return 2 * layers * groups * padded(context, KV_BLOCK) * (padded(size, BLOCK) + 4)


KVCache = FloatCache | Int8Cache


def _zeros(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeroed pages that take memory only when written.

    Not huge pages: a short conversation touches a little of every layer, and 2 MB pages would make all of
    it resident (SmolLM2 at 4096 tokens, float32: 188 MB instead of 6).
    """
    pages = mmap.mmap(-1, np.dtype(dtype).itemsize * int(np.prod(shape)))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape)
