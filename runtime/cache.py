"""The K/V cache of one sequence, float32 or int8, in the order in which the kernels read it."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

from kernels_arm.layout import padded
from kernels_arm.ops import KV_BLOCK

BLOCK = 16


class FloatCache:
    """Keys float32 [layers, g, context/16, d, 16] and values float32 [layers, g, context, d padded to 16]."""

    def __init__(self, layers: int, groups: int, size: int, context: int):
        self.context = padded(context, BLOCK)
        self.keys = _zeros((layers, groups, self.context // BLOCK, size, BLOCK), np.float32)
        self.values = _zeros((layers, groups, self.context, padded(size, BLOCK)), np.float32)

    @staticmethod
    def bytes_needed(layers: int, groups: int, size: int, context: int) -> int:
        return 4 * layers * groups * padded(context, BLOCK) * (size + padded(size, BLOCK))


class Int8Cache:
    """Keys int8 [layers, g, context/16, d/4, 16, 4], values int8 [layers, g, context/256, d/16, 64, 16, 4] (d
    padded to 16), and a float32 scale per token and head of each, [layers, g, context].
    """

    def __init__(self, layers: int, groups: int, size: int, context: int):
        self.context, width = padded(context, KV_BLOCK), padded(size, BLOCK)
        panels, steps = width // BLOCK, KV_BLOCK // 4
        self.keys = _zeros((layers, groups, self.context // BLOCK, width // 4, BLOCK, 4), np.int8)
        blocks = self.context // KV_BLOCK
        self.values = _zeros((layers, groups, blocks, panels, steps, BLOCK, 4), np.int8)
        self.key_scales = _zeros((layers, groups, self.context), np.float32)
        self.value_scales = _zeros((layers, groups, self.context), np.float32)

    @staticmethod
    def bytes_needed(layers: int, groups: int, size: int, context: int) -> int:
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
