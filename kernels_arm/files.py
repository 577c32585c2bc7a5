"""Files and folders where others may have put something: opened without waiting, and asked whose they are."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO, cast


def open_regular(path: Path | str) -> BinaryIO:
    """For reading. OSError for what is no regular file: nothing is waited for, as a pipe would be."""
    file = cast(BinaryIO, open(path, "rb", opener=_without_waiting))  # noqa: SIM115  the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return file


def read_regular(path: Path | str) -> bytes:
    """All of a regular file; OSError otherwise."""
    with open_regular(path) as file:
        return file.read()


def read_text(path: Path | str) -> str:
    """As `Path.read_text` in UTF-8, of a regular file."""
    with io.TextIOWrapper(open_regular(path), encoding="utf-8") as file:
        return file.read()


def foreign(facts: os.stat_result) -> str | None:
    """Why users other than this one and root may have written what has these facts; None where none could."""
    if os.name == "nt":
        return None  # no owners and modes of this kind
    if facts.st_uid not in (0, os.geteuid()):
        return f"belongs to another user (uid {facts.st_uid})"
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by other users"
    return None


def foreign_path(path: Path) -> str | None:
    """The same of a path, and of a link who made it. OSError where there is nothing."""
    if os.name != "nt" and (owner := os.lstat(path).st_uid) not in (0, os.geteuid()):
        return f"belongs to another user (uid {owner})"
    return foreign(os.stat(path))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
