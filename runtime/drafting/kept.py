"""What drafting learned on this device, kept from one process to the next.

A process that knows nothing drafts too much or too little in its first answer, which is often its only one.
So when a model is closed, costs of passes, chances of guesses, what readings served and the rate of the text
are written: a few KB of JSON for each model in the cache folder ($FLATLM_CACHE, else the user's). Averages
begin there; it changes what is drafted, never what is answered. A file that cannot be read is one that is not
there, and where none can be written nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatlm.kernels_arm.files import read_regular
from flatlm.kernels_arm.library import cache_folder
from flatlm.runtime.drafting.costs import Costs
from flatlm.runtime.drafting.schedule import Schedule

if TYPE_CHECKING:
    from flatlm.runtime.format.artifact import Artifact

# What reading a file raises that something else wrote.
DAMAGED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


class Kept:
    """What the models of one process know; `how` they run: whatever else a pass depends on."""

    def __init__(self, how: str, folder: Path | None = None) -> None:
        self._how, self._folder = how, folder or default_folder()  # None: nothing is kept
        self._files: list[tuple[Path, Callable[[], Any]]] = []  # and what is to be written, if anything

    def costs(self, artifact: Artifact, role: str) -> Costs:
        """Of passes of `artifact` as target, drafter or nested model."""
        costs = Costs()
        self._begin(artifact, role, costs.recall, costs.memory)
        return costs

    def schedule(self, artifact: Artifact, drafters: Sequence[str]) -> Schedule:
        """Of the target `artifact` with these drafters."""
        schedule = Schedule(self.costs(artifact, "target"))
        self._begin(artifact, f"target of {','.join(drafters)}", schedule.recall, schedule.memory)
        return schedule

    def write(self) -> None:
        """Keep what was learned since; each file is replaced whole."""
        for path, memory in self._files:
            if found := memory():
                with suppress(OSError):
                    _write(path, found)

    def _begin(
        self, artifact: Artifact, role: str, recall: Callable[[Any], None], memory: Callable[[], Any]
    ) -> None:
        if self._folder is None:
            return
        weights = sorted(entry.sha256 for entry in artifact.manifest.files.values())
        identity = json.dumps([platform.node(), self._how, role, weights])
        path = self._folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"
        with suppress(OSError, *DAMAGED):
            recall(json.loads(read_regular(path)))
        self._files.append((path, memory))


def default_folder() -> Path | None:
    """In the cache folder that the kernels have too; None for a user without a home."""
    try:
        return cache_folder() / "drafting"
    except RuntimeError:
        return None


def _write(path: Path, memory: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        with part.open("x", encoding="utf-8") as file:  # in a shared folder a link could lie in wait there
            file.write(json.dumps(memory))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
