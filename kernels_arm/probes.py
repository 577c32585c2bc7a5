"""What the machine can do at most: bytes read a second, and multiply-accumulates of the tier's dot product.

Both run on all threads at once, in loops of our own (limits.py) that do nothing else. Reading streams through
a buffer far larger than the caches; the dot products stay in registers and the first cache.

A virtual machine is not one machine. Its processors may be on cores of two dies, of one, or two threads
of one core, and move every few seconds: 58, 34 and 28 GB/s, and half the dot products in the last, were
seen on one server (docs/log/speed.md). So a bound holds only for what ran right beside the probe: `Probe`
costs some 30 ms and is taken before and after each measurement; `agreed` says whether the machine was
the same at both ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .library import Library
from .team import fast_cores, pin

BYTES = 256 * 2**20  # several times the last cache of a server's core complex
ROUNDS = 2  # through the buffer in a pass of 10 to 20 ms: threads start some 0.1 ms apart
DOTS = 1 << 19  # calls of a pass: some 6 ms on one core
PASSES = 7
SAME = 0.15  # probes of one state of a machine differ less; its states are 1.25 and more apart


@dataclass(frozen=True)
class Limits:
    """Of `threads` threads together."""

    threads: int
    read: float  # bytes per second
    multiplications: float  # int8 × int8 multiply-accumulates per second


class Probe:
    """One pass at each call. Holds `size` bytes."""

    def __init__(self, library: Library, threads: int, size: int = BYTES) -> None:
        self._library, self.threads = library, threads
        self._buffer, self._share = np.ones(size, np.uint8), size // threads // 4096 * 4096

    def __call__(self) -> Limits:
        base, share = self._buffer.ctypes.data, self._share

        def read(thread: int) -> int:
            for _ in range(ROUNDS):
                self._library.read(base + thread * share, share)
            return ROUNDS * share

        def multiply(thread: int) -> int:
            return int(self._library.dots(base, DOTS))

        return Limits(self.threads, *(_together(work, self.threads) for work in (read, multiply)))


def measure(library: Library, threads: int, size: int = BYTES) -> Limits:
    """The highest of a few passes, in less than a second: whatever else ran meanwhile can only lower one."""
    probe = Probe(library, threads, size)
    found = [probe() for _ in range(PASSES)]
    return Limits(threads, max(f.read for f in found), max(f.multiplications for f in found))


def agreed(before: Limits, after: Limits) -> bool:
    """Whether both are of one state of the machine."""
    pairs = ((before.read, after.read), (before.multiplications, after.multiplications))
    return all(min(pair) >= (1 - SAME) * max(pair) for pair in pairs)


def mean(found: Sequence[Limits]) -> Limits:
    """The mean of each rate."""
    reads, rates = [f.read for f in found], [f.multiplications for f in found]
    return Limits(found[0].threads, sum(reads) / len(found), sum(rates) / len(found))


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
