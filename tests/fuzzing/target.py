"""What is fuzzed: a target names its modules, makes good files, changes them, and reads what came of it.

`run` gives anything, or raises a FlatlmError: both are right. Whatever else happens is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis.strategies import SearchStrategy


class Case(NamedTuple):
    """What is read: the file called `name` has this content, the files beside it are good ones."""

    name: str
    content: bytes

    def __repr__(self) -> str:  # hypothesis asks for it; a content may be long
        return f"{self.name} of {len(self.content)} bytes"


@dataclass(frozen=True)
class Limits:
    """Of one case; `memory` is what it may map beyond what the child has."""

    seconds: float = 3.0  # of the processor: a busy machine takes longer by the clock
    memory: int = 1 << 30
    output: int = 1 << 20  # bytes on stdout and stderr


@dataclass(frozen=True)
class Prepared:
    """`cases` draws one, `run` reads it. Both may use the files that `prepare` wrote."""

    cases: SearchStrategy[Case]
    run: Callable[[Case], object]


@dataclass(frozen=True)
class Target:
    """`modules` are those whose lines are counted; `prepare` gets an empty folder."""

    name: str
    modules: tuple[str, ...]
    prepare: Callable[[Path], Prepared]
    limits: Limits = Limits()


class DifferentError(AssertionError):
    """Two ways to compute one thing, and two results."""


def in_place(path: Path, content: bytes, read: Callable[[], Any]) -> Any:
    """What `read` gives while the file `path` has this content; then it is as it was."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        return read()
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
