"""Shared libraries mapped from the open file, so that what was judged is what runs.

The system's loader takes names only; /proc/self/fd gives an open file one. Where there is none (macOS), the
name must still lead to the same file afterwards.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import BinaryIO

# By device, inode, time and size. The loader knows a library by its name and gives it again for the same one,
# so the descriptor of a name must stay open as long as the library, which is as long as the process.
_mapped: dict[tuple[int, int, int, int], ctypes.CDLL] = {}


def load(file: BinaryIO, path: Path) -> ctypes.CDLL:
    """The library in `file`, which was opened as `path`. OSError if the system refuses it."""
    identity = _identity(os.fstat(file.fileno()))
    if identity not in _mapped:
        _mapped[identity] = _map_open(file) or _map_named(path, identity)
    return _mapped[identity]


def _map_open(file: BinaryIO) -> ctypes.CDLL | None:
    """None where the system knows no names of open files, or cannot map by them."""
    held = os.dup(file.fileno())
    try:
        return ctypes.CDLL(f"/proc/self/fd/{held}")
    except OSError:
        os.close(held)
        return None


def _map_named(path: Path, identity: tuple[int, int, int, int]) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    if _identity(os.stat(path)) != identity:
        raise OSError(f"{path} was replaced while it was opened")
    return library


def _identity(facts: os.stat_result) -> tuple[int, int, int, int]:
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size
