"""What the machine can do at most: bytes read a second, and multiply-accumulates of the tier's dot product.

Both run on all threads at once, in loops of our own (limits.py) that do nothing else. Reading streams through
a buffer far larger than the caches; the dot products stay in registers and the first cache. The best of a few
passes counts: a bound should not depend on what else the machine did.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .library import Library
from .team import fast_cores, pin

BYTES = 256 * 2**20  # several times the last cache of a server's core complex
ROUNDS = 12  # through the buffer in a pass: threads start up to some ms apart, one round takes 5 to 10 ms
DOTS = 1 << 22  # calls of a pass: some 50 ms on one core
PASSES = 7


@dataclass(frozen=True)
class Limits:
    """Of `threads` threads together."""

    threads: int
    read: float  # bytes per second
    multiplications: float  # int8 × int8 multiply-accumulates per second


def measure(library: Library, threads: int, size: int = BYTES) -> Limits:
    """About a second. `size` bytes are allocated."""
    buffer = np.ones(size, np.uint8)
    base, share = buffer.ctypes.data, size // threads // 4096 * 4096

    def read(thread: int) -> int:
        for _ in range(ROUNDS):
            library.read(base + thread * share, share)
        return ROUNDS * share

    def multiply(thread: int) -> int:
        return int(library.dots(base, DOTS))

    return Limits(
        threads, *(max(_together(work, threads) for _ in range(PASSES)) for work in (read, multiply))
    )


def higher(a: Limits, b: Limits) -> Limits:
    """The higher of each: whatever else ran meanwhile can only have lowered one."""
    return Limits(a.threads, max(a.read, b.read), max(a.multiplications, b.multiplications))


def _together(work: Callable[[int], int], threads: int) -> float:
    """Units of work per second, from the first thread's start to the last one's end."""
    cores = fast_cores()
    pinned = cores.pinned if threads <= cores.threads else frozenset[int]()
    start, done = threading.Barrier(threads), [(0, 0.0, 0.0)] * threads

    def run(thread: int) -> None:
        pin(pinned)
        start.wait()
        began = time.perf_counter()
        amount = work(thread)
        done[thread] = amount, began, time.perf_counter()

    team = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    for one in team:
        one.start()
    for one in team:
        one.join()
    return sum(d[0] for d in done) / (max(d[2] for d in done) - min(d[1] for d in done))
