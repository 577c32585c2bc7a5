"""The user's folders for compiled kernels: which there are, and what speaks against using one."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from .files import foreign_path

CACHE, TEMPORARY = "cache", "temporary folder"
HALF_MADE = ".flatlm-compile-"  # folders of compilations
_ABANDONED = 3600.0  # seconds after which no compilation still runs


def cache_folder() -> Path:
    """FLATLM_CACHE, or the user's cache folder. RuntimeError for a user without a home."""
    if folder := os.environ.get("FLATLM_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "flatlm"


def temporary_folder() -> Path:
    """For a user whose cache folder is none or cannot be written: always the same, and this user's alone."""
    user = os.geteuid() if os.name != "nt" else "kernels"
    return Path(tempfile.gettempdir()) / f"flatlm-{user}"


def folders() -> list[tuple[Path, str]]:
    """Where libraries compiled here may lie, and what such a place is called. New ones go to the last."""
    try:
        cache = cache_folder()
    except RuntimeError:  # no HOME, and a user that the system does not know
        return [(temporary_folder(), TEMPORARY)]
    if os.environ.get("FLATLM_CACHE") or _can_be_written(cache):
        return [(cache, CACHE)]
    return [(cache, CACHE), (temporary_folder(), TEMPORARY)]


def remark(folder: Path, kind: str) -> str:
    """What a person should know who waits for kernels that are compiled there."""
    if kind != TEMPORARY:
        return ""
    return f" into {folder}, as this user has no cache folder: FLATLM_CACHE names one that lasts"


def objection(folder: Path, executed: bool) -> str | None:
    """Why kernels should not be compiled into `folder`, and what to do. `executed`: mapped from there."""
    if executed and no_execution(_standing(folder)):
        return (
            f"nothing may be executed in {folder} (its disk is mounted noexec): "
            "set FLATLM_CACHE to a folder on another disk, in which only you write"
        )
    if os.path.lexists(folder):
        fault = None if folder.is_dir() else "is no folder"
        if fault := fault or (None if _made_here(folder) else foreign_path(folder)):
            return f"{folder} {fault}: set FLATLM_CACHE to a folder in which only you write"
    return None


def no_execution(path: Path) -> bool:
    """Whether the disk is mounted noexec, as the shared storage of Android is."""
    return os.name != "nt" and bool(os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0))


def make_ready(folder: Path) -> None:
    """Make the folder, in which nobody else writes, and remove what compilations left that were killed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _made_here(folder):
        folder.chmod(folder.stat().st_mode & ~(stat.S_IWGRP | stat.S_IWOTH))
    for left in folder.glob(f"{HALF_MADE}*"):
        with suppress(OSError):  # another process removes it
            facts = left.lstat()
            ours = os.name == "nt" or facts.st_uid == os.geteuid()
            if stat.S_ISDIR(facts.st_mode) and ours and time.time() - facts.st_mtime > _ABANDONED:
                shutil.rmtree(left)


def _made_here(folder: Path) -> bool:
    """Whether flatlm made the folder, and so may take it from the group (as it is under `umask 002`)."""
    return os.name != "nt" and not os.environ.get("FLATLM_CACHE") and os.lstat(folder).st_uid == os.geteuid()


def _can_be_written(folder: Path) -> bool:
    there = _standing(folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _standing(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
