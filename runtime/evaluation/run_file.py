"""The file of a run: its settings in the first line, then one item a line, as JSON.

A line is written, flushed and synced before the next item is asked, so a kill at any moment loses at most the
items in progress, as many as are answered side by side. What it leaves of a last line is cut off when the run
goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatlm.runtime import settings as outside
from flatlm.runtime.errors import ResourceError, UsageError, full_disk
from flatlm.runtime.settings import Settings

FORMAT = 1
COSTS = ("prompt_tokens", "reused_tokens", "prefill_seconds", "generated_tokens", "decode_seconds")
MAGIC = b'{"flatlm_run": 1, "settings": '  # what a first line begins with


@dataclass(frozen=True)
class Run:
    """A run as read: `records` are the items' lines, in the file's order."""

    settings: dict[str, Any]
    records: list[dict[str, Any]]


class RunFile:
    """A run being written: opened new, or continued where `settings` are those of its first line.

    Raises UsageError where they differ, where the file is no run, and where another process writes it.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        try:
            self._file = path.open("a+b", buffering=0)  # what a full disk did not take is not tried again
        except OSError as error:
            raise UsageError(f"--out {path} cannot be written: {error}") from None
        self._path = path
        try:
            self.records = self._resume(json.loads(json.dumps(settings)))
        except BaseException:
            self._file.close()
            raise

    def _resume(self, settings: dict[str, Any]) -> list[dict[str, Any]]:
        path = self._path
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"--out {path}: another process is writing this run") from None
        self._file.seek(0)
        lines, kept = _lines(self._file.read(), path)
        if not lines:
            self._file.truncate(kept)
            self._write({"flatlm_run": FORMAT, "settings": settings})
            return []
        run = _run(lines, path)
        differing = _differences(run.settings, settings)
        if differing:
            raise UsageError(
                f"--out {path} was begun with other settings: {'; '.join(differing)}. Give the same ones to "
                "continue it, or another --out"
            )
        self._file.truncate(kept)  # only now: it is the run that is meant
        return run.records

    def append(self, record: dict[str, Any]) -> None:
        """Add an item's line, on the disk when this returns. ResourceError where the disk is full."""
        self._write(record)
        self.records.append(record)

    def _write(self, value: dict[str, Any]) -> None:
        line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            if full := full_disk(error):
                raise ResourceError(
                    f"the disk of {self._path} {full}; make room, and the same command goes on with it"
                ) from error
            raise

    def close(self) -> None:
        """Let other processes write the file."""
        self._file.close()

    def __enter__(self) -> RunFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_run(path: Path) -> Run:
    """The run in `path`, a last line that is cut off left out. UsageError where it is no run."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    lines, _ = _lines(content, path)
    if not lines:
        raise UsageError(f"{path} is empty: no run began there")
    return _run(lines, path)


def _run(lines: list[Any], path: Path) -> Run:
    """The run of a file's lines. UsageError where one is not what `flatlm eval` writes."""
    objects = []
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict):
            raise UsageError(f"{path}: line {number} is no object; delete it to have it redone")
        objects.append(Settings(line, f"{path}: line {number}", UsageError))
    head, *records = objects
    for record in records:
        _check(record)
        if differing := {*_parts(record)} ^ {*_parts(records[0])}:
            raise UsageError(
                f"{record.place} differs in {min(differing)} from the line of the first item; "
                "delete it to have it redone"
            )
    return Run(dict(head.table("settings").values), [dict(record.values) for record in records])


def _check(record: Settings) -> None:
    """An item's line has what summaries and comparisons ask of it."""
    record.need("id", str)
    record.need("right", bool)
    if "answer" in record:
        record.get("answer", str)
        record.need("authors_right", bool)
    else:
        record.need("result", str)
    if not (answers := record.tables("answers")):
        raise record.wrong("answers", "a list of at least one answer")
    for answer in answers:
        answer.need("finish_reason", str)
    cost = record.table("cost")
    for name in {*cost, *COSTS}:
        cost.need(name, float)


def _parts(record: Settings) -> list[str]:
    return [*record, *(f"cost.{name}" for name in record.table("cost"))]


def _lines(content: bytes, path: Path) -> tuple[list[Any], int]:
    """The lines as JSON and the bytes they take. A last line that is cut off or damaged does not count."""
    if content[: len(MAGIC)] != MAGIC[: len(content)]:
        raise UsageError(f"{path} is no run of `flatlm eval` (format {FORMAT})")
    values: list[Any] = []
    kept = 0
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            value = outside.loads(line)
        except ValueError:
            if kept + len(line) == len(content):
                break
            raise UsageError(
                f"{path}: line {len(values) + 1} is damaged; delete it to have it redone"
            ) from None
        values.append(value)
        kept += len(line)
    return values, kept


def _differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = sorted({*was, *now})
    return [
        f"{name} {was.get(name)!r}, now {now.get(name)!r}" for name in names if was.get(name) != now.get(name)
    ]
