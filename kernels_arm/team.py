"""The thread team of one model: Python threads that live inside the compiled `serve` and sleep when idle.

On mixed cores (big.LITTLE) the team stays on the fast ones: a step ends when its slowest thread does.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from . import cgroup
from . import library as kernels
from .ops import FIELDS, MAX_THREADS, T_PARKED, T_STEP, T_STOP, T_THREADS, T_TIMES, T_YIELD, TEAM_WORDS


class Team:
    """Runs a plan: `ops` int64 [n, 24], step words int64, scratch bytes per thread.

    It holds `keep`, the arrays that ops and step words point to, as long as it lives.
    """

    def __init__(
        self,
        library: kernels.Library,
        ops: np.ndarray,
        state: np.ndarray,
        scratch: int,
        threads: int,
        keep: Sequence[np.ndarray] = (),
    ):
        assert ops.dtype == np.int64 and ops.shape[1] == FIELDS and ops.flags.c_contiguous
        self.threads = max(1, min(threads, MAX_THREADS))
        cores = fast_cores()
        self.pinned = cores.pinned if self.threads <= cores.threads else frozenset()  # more threads: anywhere
        self._driver, self._unpinned = 0, frozenset[int]()
        self._library = library
        self._team = aligned(TEAM_WORDS * 8).view(np.int64)
        self._words = aligned(len(ops) * 64)
        size = -(-scratch // 4096) * 4096
        self._scratch = aligned(size * self.threads)
        self._ops, self._state, self._keep = ops, state, keep
        self._team[T_THREADS:T_YIELD] = (
            self.threads, ops.ctypes.data, len(ops), self._words.ctypes.data, state.ctypes.data,
            self._scratch.ctypes.data, size,
        )  # fmt: skip
        self._team[T_YIELD] = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
        self._address = self._team.ctypes.data
        self._wake = [threading.Event() for _ in range(self.threads)]
        self._workers = [
            threading.Thread(
                target=_serve, args=(library, self._team, i, self._wake[i], self.pinned), daemon=True
            )
            for i in range(1, self.threads)
        ]
        for worker in self._workers:
            worker.start()
        self._finish = weakref.finalize(self, _stop, self._team, self._wake, self._workers)

    def step(self) -> None:
        """Run the plan once with the present step words. The calling thread is of the team: pinned too."""
        if self.pinned and self._driver != threading.get_ident():
            self._driver, self._unpinned = threading.get_ident(), pin(self.pinned)[0]
        if self.threads > 1 and self._library.parked(self._address):
            for event in self._wake:
                event.set()
        self._library.step(self._address)

    def time_ops(self, on: bool) -> np.ndarray:
        """Begin or end timing. Returns int64 [n]: ticks of each op since it began, as thread 0 saw them."""
        if on:
            self._times = np.zeros(len(self._ops), np.int64)
        self._team[T_TIMES] = self._times.ctypes.data if on else 0
        return self._times

    def close(self) -> None:
        """End the workers; the calling thread may run anywhere again if it was the one that stepped."""
        self._finish()
        if self._driver == threading.get_ident():
            pin(self._unpinned)
            self._driver = 0


def _serve(
    library: kernels.Library,
    team: np.ndarray,
    thread: int,
    wake: threading.Event,
    pinned: frozenset[int],
) -> None:
    """A worker's life: in the compiled loop while there is work, asleep on its event while there is not."""
    pin(pinned)
    address, last = team.ctypes.data, 0
    parked = T_PARKED + 8 * thread
    while (last := library.serve(address, thread, last)) >= 0:
        team[parked] = 1
        if team[T_STEP] == last and not team[T_STOP]:  # else a step came in between: do not sleep through it
            wake.wait()
        wake.clear()
        team[parked] = 0


def _stop(team: np.ndarray, wake: list[threading.Event], workers: list[threading.Thread]) -> None:
    team[T_STOP] = 1
    for event in wake:
        event.set()
    if threading.current_thread() not in workers:
        for worker in workers:
            worker.join()


PAGES = 1 << 17  # bytes; larger buffers are pages of their own


def aligned(size: int, to: int = 64) -> np.ndarray:
    """Zeroed uint8 [size] whose address is a multiple of `to`.

    A large one takes memory where it is written, and gives it back when it is freed. malloc does neither once
    something as large was freed: it keeps the pages, and writes the zeros of the next buffer into them.
    """
    raw = np.zeros(size + to, np.uint8) if size < PAGES else _pages(size + to)
    start = -raw.ctypes.data % to
    return raw[start : start + size]


def _pages(size: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


# --------------------------------------------------------------------------------------------- which cores
FAST = 0.7  # of the top capacity. Phones' middle cores have 0.7 to 0.9 of it, little ones 0.2 to 0.45


@dataclass(frozen=True)
class Cores:
    """How many threads to start by default, the cores to keep them on (empty: anywhere), and why."""

    threads: int
    pinned: frozenset[int]
    why: str


def fast_cores() -> Cores:
    """The cores this process may use; of unequal ones those with at least 70 % of the top capacity."""
    if not hasattr(os, "sched_getaffinity"):  # macOS, which pins nothing either
        count = _performance_cores()
        return Cores(count or os.cpu_count() or 1, frozenset(), "performance cores" if count else "all cores")
    allowed = sorted(os.sched_getaffinity(0))
    known = {core: _capacity(core) for core in allowed}
    capacities = {core: capacity for core, capacity in known.items() if capacity}
    if len(capacities) < len(allowed):
        return Cores(len(allowed), frozenset(), "all allowed cores; the system tells no capacities")
    top = max(capacities.values())
    fast = [core for core in allowed if capacities[core] >= FAST * top]
    if len(fast) == len(allowed):
        return Cores(len(allowed), frozenset(), "all allowed cores, which are of like capacity")
    slow = max(capacity for capacity in capacities.values() if capacity < FAST * top)
    reason = f"the top capacity is {top}, the slower ones have {slow} at most"
    return Cores(len(fast), frozenset(fast), f"cores {ranges(fast)} of {ranges(allowed)}: {reason}")


def default_threads() -> int:
    """One per fast core, as far as the control group has time for them."""
    return cgroup.threads(fast_cores().threads)


def describe() -> dict[str, str]:
    """What `flatlm doctor` tells: the default threads with the reason, and where a pinned thread may run."""
    cores, masks = fast_cores(), list[frozenset[int]]()
    trial = threading.Thread(target=lambda: masks.append(pin(cores.pinned)[1]))
    trial.start()
    trial.join()
    facts = {"threads": f"{cores.threads}: {cores.why}"}
    if (threads := default_threads()) < cores.threads:
        time = f"the control group has the time of {cgroup.cpus():g}"
        facts["threads"] = f"{threads}: {time}, of {cores.threads} ({cores.why})"
    if cores.pinned:
        kept = masks[0] == cores.pinned
        facts["pinned"] = (
            f"to {ranges(masks[0])}, as read back" if kept else "no: the system does not allow it"
        )
    return facts


def pin(cores: frozenset[int]) -> tuple[frozenset[int], frozenset[int]]:
    """Keep the calling thread on `cores` (empty: change nothing); its cores before and after, as read back.

    A system that refuses (a core was switched off, a container's rule) leaves them as they were.
    """
    if not cores:
        return frozenset(), frozenset()
    before = frozenset(os.sched_getaffinity(0))
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cores)
    return before, frozenset(os.sched_getaffinity(0))


def ranges(cores: Iterable[int]) -> str:
    """[0, 1, 2, 5] as `0-2, 5`."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _capacity(core: int) -> int | None:
    """The core's speed as Linux on ARM tells it, of 1024 for the fastest; None where it does not."""
    try:
        with open(f"/sys/devices/system/cpu/cpu{core}/cpu_capacity") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _performance_cores() -> int:
    """macOS's number of fast cores, 0 where it does not say."""
    value, size = ctypes.c_int32(0), ctypes.c_size_t(4)
    key = b"hw.perflevel0.logicalcpu"
    status = ctypes.CDLL(None).sysctlbyname(key, ctypes.byref(value), ctypes.byref(size), None, 0)
    return 0 if status else value.value
