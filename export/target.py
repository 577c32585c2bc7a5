"""What an export may make or replace: a new folder, or with --force an artifact, and nothing else.

Replacing deletes what stood there, so every file there must be one of flatlm's own. It is asked before any
work, and again before the replacing.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from flatlm.runtime.errors import ArtifactError, UsageError
from flatlm.runtime.format.artifact import MANIFEST, read_manifest

ELSEWHERE = "give a folder that does not exist yet"


def check(out: Path, force: bool, source: Path | None = None) -> Path:
    """`out` in full, where an export of the file or folder `source` may make it or, with `force`, replace it.

    UsageError, which says what stands there, for anything but a new folder and an artifact; for the source,
    what contains it or lies in it; for the working folder and those above it; and for links.
    """
    if os.path.islink(out):
        raise UsageError(f"{out} is a link, to {os.readlink(out)}: give that folder's own name, or a new one")
    out = out.resolve()  # `.` has no name of its own
    if source is not None and (_among(out, source) or _among(source, out)):
        raise UsageError(f"{out} is, holds or lies in the source {source}: {ELSEWHERE} outside of it")
    if not os.path.lexists(out):
        return out
    if _among(Path.cwd(), out):
        raise UsageError(f"{out} is the working folder, or holds it: {ELSEWHERE}")
    if objection := _no_artifact(out):
        raise UsageError(
            f"{out} exists already and {objection}; --force replaces exported models only: {ELSEWHERE}"
        )
    if not force:
        raise UsageError(f"{out} exists already: choose another folder, or replace it with --force")
    return out


def _among(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or lies in it, by whatever names: other mounts and cases are seen too."""
    try:
        there = os.stat(folder)
    except OSError:
        return False
    path = path.resolve()
    for part in (path, *path.parents):
        try:
            if os.path.samestat(os.stat(part), there):
                return True
        except OSError:  # not made yet
            continue
    return False


def _no_artifact(folder: Path) -> str | None:
    """What is in `folder` that an export did not put there; None for an artifact and nothing else."""
    if not folder.is_dir():
        return "is no folder"
    if os.path.ismount(folder):
        return "is a mounted disk"
    try:
        names = sorted(os.listdir(folder))
        if MANIFEST not in names:
            return f"has no {MANIFEST}, so it is no exported model" if names else "is an empty folder"
        listed = {MANIFEST, *read_manifest(folder).files}
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ArtifactError as error:
        return f"is no exported model that this flatlm reads ({error})"
    for name in names:
        if name not in listed:
            return f"holds {name}, which is not of the model"
        if not stat.S_ISREG(os.lstat(folder / name).st_mode):
            return f"holds {name}, which is no plain file"
    return None
