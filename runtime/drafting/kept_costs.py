"""What passes cost on this device, kept from one process to the next.

A process that knows nothing drafts too much at first, and the first answer is the only one of many. So costs
are written when a model is closed: a few hundred bytes of JSON a model in the user's cache folder
($XDG_CACHE_HOME, else ~/.cache). They are a beginning, no truth: the moving averages go on from them. A file
that cannot be read is one that is not there, and where none can be written nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.drafting.costs import Costs

if TYPE_CHECKING:
    from runtime.artifact import Artifact


class KeptCosts:
    """The costs of the models of one process; `how` they run: whatever else a pass depends on."""

    def __init__(self, how: str, folder: Path | None = None) -> None:
        self._how, self._folder = how, folder or default_folder()
        self._files: list[tuple[Path, Costs]] = []

    def of(self, artifact: Artifact, role: str) -> Costs:
        """Those of `artifact` as target, drafter or nested model, as the last process left them."""
        weights = sorted(entry.sha256 for entry in artifact.manifest.files.values())
        identity = json.dumps([platform.node(), self._how, role, weights])
        path = self._folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"
        costs = Costs(_read(path))
        self._files.append((path, costs))
        return costs

    def write(self) -> None:
        """Keep what was measured since; each file is replaced whole."""
        for path, costs in self._files:
            if costs.measured:
                with suppress(OSError):
                    _write(path, costs.averages)


def default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flatlm" / "costs"


def _read(path: Path) -> dict[int, float]:
    """Seconds by rows; empty where the file is not what `_write` writes."""
    try:
        found = {int(rows): float(seconds) for rows, seconds in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return found if all(r >= 1 and s > 0 and math.isfinite(s) for r, s in found.items()) else {}


def _write(path: Path, seconds: dict[int, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_text(json.dumps(seconds), encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
