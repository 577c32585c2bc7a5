"""Findings as files: tests/findings/TARGET/DIGEST-NAME, each the content of the file called NAME.

They stay when the defect is mended, as tests.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.fuzzing.target import Case

FOLDER = Path(__file__).parent.parent / "findings"


def keep(target: str, case: Case, folder: Path = FOLDER) -> Path:
    """Write the case; the path."""
    place = folder / target.replace(" ", "_")
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{hashlib.sha256(case.content).hexdigest()[:8]}-{case.name}"
    path.write_bytes(case.content)
    return path


def kept(target: str, folder: Path = FOLDER) -> list[Case]:
    """The cases of a target, in the order of their names."""
    place = folder / target.replace(" ", "_")
    return [Case(path.name.partition("-")[2], path.read_bytes()) for path in sorted(place.glob("*-*"))]
