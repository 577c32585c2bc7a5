"""The thread team of one model: Python threads that live inside the compiled `serve` and sleep when idle."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref

import numpy as np

from . import library as kernels
from .ops import FIELDS, MAX_THREADS, T_PARKED, T_STEP, T_STOP, T_THREADS, T_YIELD, TEAM_WORDS


class Team:
    """Runs a plan: `ops` int64 [n, 24], step words int64, scratch bytes per thread."""

    def __init__(
        self, library: kernels.Library, ops: np.ndarray, state: np.ndarray, scratch: int, threads: int
    ):
        assert ops.dtype == np.int64 and ops.shape[1] == FIELDS and ops.flags.c_contiguous
        self.threads = max(1, min(threads, MAX_THREADS))
        self._library = library
        self._team = aligned(TEAM_WORDS * 8).view(np.int64)
        self._words = aligned(len(ops) * 64)
        size = -(-scratch // 4096) * 4096
        self._scratch = aligned(size * self.threads)
        self._ops, self._state = ops, state
        self._team[T_THREADS:T_YIELD] = (
            self.threads, ops.ctypes.data, len(ops), self._words.ctypes.data, state.ctypes.data,
            self._scratch.ctypes.data, size,
        )  # fmt: skip
        self._team[T_YIELD] = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
        self._address = self._team.ctypes.data
        self._wake = [threading.Event() for _ in range(self.threads)]
        self._workers = [
            threading.Thread(target=_serve, args=(library, self._team, i, self._wake[i]), daemon=True)
            for i in range(1, self.threads)
        ]
        for worker in self._workers:
            worker.start()
        self._finish = weakref.finalize(self, _stop, self._team, self._wake, self._workers)

    def step(self) -> None:
        """Run the plan once with the present step words."""
        if self.threads > 1 and self._library.parked(self._address):
            for event in self._wake:
                event.set()
        self._library.step(self._address)

    def close(self) -> None:
        self._finish()


def _serve(library: kernels.Library, team: np.ndarray, thread: int, wake: threading.Event) -> None:
    """A worker's life: in the compiled loop while there is work, asleep on its event while there is not."""
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


def aligned(size: int, to: int = 64) -> np.ndarray:
    """Zeroed uint8 [size] whose address is a multiple of `to`."""
    raw = np.zeros(size + to, np.uint8)
    start = -raw.ctypes.data % to
    return raw[start : start + size]


def default_threads() -> int:
    """The processors this process may use; on mixed cores those with ≥ 70 % of the top capacity."""
    try:
        allowed = sorted(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
    capacity = {cpu: _capacity(cpu) for cpu in allowed}
    top = max(capacity.values())
    return max(1, sum(c >= 0.7 * top for c in capacity.values()))


def _capacity(cpu: int) -> int:
    try:
        with open(f"/sys/devices/system/cpu/cpu{cpu}/cpu_capacity") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1024
