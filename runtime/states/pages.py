"""Memory that takes pages only where it is written."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np


def zeroed(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeroed pages that take memory only when written.

    Not huge pages: a short conversation touches a little of every layer, and 2 MB pages would make all of
    it resident (SmolLM2 at 4096 tokens, float32: 188 MB instead of 6).
    """
    pages = mmap.mmap(-1, np.dtype(dtype).itemsize * int(np.prod(shape)))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape)
