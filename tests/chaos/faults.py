"""The faults: what is done to a process at a moment, or what it lacks from the beginning."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Fault:
    """`statuses` are the exit statuses that docs/commands.md allows after it, besides 0 of who was quicker.

    `strike`: done to the process at the moment, with the trial's folder. `starve`: done in the process before
    it begins, by a share of 0 … 1 that is drawn.
    """

    statuses: tuple[int, ...]
    strike: Callable[[int, Path], None] | None = None
    starve: Callable[[float], None] | None = None


def _signalled(number: int) -> Callable[[int, Path], None]:
    def strike(pid: int, trial: Path) -> None:
        os.kill(pid, number)

    return strike


def _small_files(share: float) -> None:
    """No file beyond some size, as on a disk that is full: 1 B … 1 MB, small ones more often."""
    most = int(MEGABYTE**share)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def _little_memory(share: float) -> None:
    """100 … 1,000 MB of address space, of which Python, numpy and the kernels take some hundreds."""
    most = int((100 + 900 * share) * MEGABYTE)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _robbed(pid: int, trial: Path) -> None:
    """What it writes into is no longer there: the folders of its results, under another name."""
    for name in ("model", ".model.export", "models"):
        with contextlib.suppress(OSError):
            (trial / name).rename(trial / f"robbed-{name}")


def _forbidden(pid: int, trial: Path) -> None:
    """Nothing new may be written in the trial's folder, nor in those it works in."""
    for folder in (trial, *trial.glob(".*"), *trial.glob("models")):
        with contextlib.suppress(OSError):
            folder.chmod(0o500)


FAULTS = {
    "kill": Fault((-signal.SIGKILL,), _signalled(signal.SIGKILL)),
    "term": Fault((-signal.SIGTERM, 128 + signal.SIGTERM), _signalled(signal.SIGTERM)),
    "interrupt": Fault((130, -signal.SIGINT), _signalled(signal.SIGINT)),
    "disk": Fault((1,), starve=_small_files),
    "memory": Fault((1, -signal.SIGSEGV, -signal.SIGABRT), starve=_little_memory),  # in others' libraries
    "robbed": Fault((1,), _robbed),
    "forbidden": Fault((1,), _forbidden),
}


def possible() -> list[str]:
    """Those that can be done here: root may write anywhere."""
    return [name for name in FAULTS if name != "forbidden" or os.geteuid()]


def moment(random: Random, seconds: float) -> float:
    """When to strike a process that takes `seconds` if left alone."""
    return random.uniform(0, 1.05 * seconds)
