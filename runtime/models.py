"""The models of the models' folder (runtime/names.py): what there is, when it was used, and removing it."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from flatlm.runtime.errors import ArtifactError, UsageError
from flatlm.runtime.format.artifact import MANIFEST, Manifest, read_manifest
from flatlm.runtime.names import folder, is_name, known, named, place_of

_USED = ".used"


@dataclass(frozen=True, slots=True)
class Model:
    """One of the folder. `size` in bytes, `used` in seconds since 1970; manifest None: unreadable."""

    name: str
    path: Path
    manifest: Manifest | None
    size: int
    used: float
    origin: str


def listed() -> list[Model]:
    """All models of the folder, the last used first."""
    return sorted(map(_model, named()), key=lambda model: -model.used)


def note_use(path: Path, came_from: str | None = None) -> None:
    """That the model was opened now, and where it came from if that is new; for those of the folder only."""
    if path.parent.resolve() != folder().resolve() or not is_name(path.name):
        return
    note = folder() / _USED / path.name
    with contextlib.suppress(OSError):  # a folder that cannot be written is no reason not to run
        note.parent.mkdir(exist_ok=True)
        if came_from is not None:
            note.write_text(came_from + "\n", encoding="utf-8")
        note.touch()


def origin(name: str) -> str:
    """Where the model came from, as it was noted; empty where nothing was."""
    try:
        return (folder() / _USED / name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def remove(name: str) -> int:
    """Deletes the model `name` of the folder; how many bytes that gives back.

    UsageError where it is no model or holds files that are not of it.
    """
    path = place_of(name)
    if not path.is_dir():
        raise UsageError(f"there is no model {name}{known(name)}")
    if path.is_symlink():
        path.unlink()
        return 0
    size = _own_size(path)
    shutil.rmtree(path)
    (folder() / _USED / name).unlink(missing_ok=True)
    return size


def _model(name: str) -> Model:
    path, note = folder() / name, folder() / _USED / name
    try:
        manifest = read_manifest(path)
    except ArtifactError:
        manifest = None
    size = sum(entry.size for entry in manifest.files.values()) if manifest else 0
    used = (note if note.exists() else path).stat().st_mtime
    return Model(name, path, manifest, size, used, origin(name))


def _own_size(path: Path) -> int:
    """Bytes of an artifact's files; UsageError for a folder that holds anything else."""
    try:
        listed = {MANIFEST, *read_manifest(path).files}
    except ArtifactError as error:
        raise UsageError(f"{path} was left alone: {error}") from error
    others = sorted(set(os.listdir(path)) - listed)
    if others:
        raise UsageError(f"{path} was left alone: it holds {others[0]}, which is not of the model")
    return sum((path / name).stat().st_size for name in listed if (path / name).exists())
