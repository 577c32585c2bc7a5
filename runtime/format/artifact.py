"""The artifact folder: its manifest, opening it, verifying it.

The manifest lists every other file with size and sha256. Opening compares sizes, which is instant and
finds cut downloads; `verify_artifact` re-hashes everything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatlm import __version__
from flatlm.kernels_arm.files import open_regular, read_regular
from flatlm.runtime import names, settings
from flatlm.runtime.errors import FormatError, IntegrityError
from flatlm.runtime.format.graph import Graph
from flatlm.runtime.format.onnx_reader import read_onnx
from flatlm.runtime.names import MANIFEST as MANIFEST
from flatlm.runtime.progress import Progress

MODEL = "model.onnx"
FORMAT = 1
CHUNK = 1 << 22  # bytes hashed between two calls of progress


@dataclass(frozen=True, slots=True)
class FileEntry:
    """`size` in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """flatlm.json. `layers` is the report, one mapping per layer; `totals` and `calibration` are free."""

    name: str
    architecture: str
    recipe: str
    vocab_size: int
    context_length: int
    parameters: int
    bits_per_weight: float
    files: Mapping[str, FileEntry]
    layers: Sequence[Mapping[str, Any]] = ()
    totals: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    flatlm: str = ""  # the version that wrote it
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """FormatError for a newer format, a missing or unknown field, or one of the wrong type."""
        try:
            data = settings.loads(text if isinstance(text, bytes) else text.encode())
        except ValueError as error:
            raise FormatError(f"not JSON ({error})") from error
        if not isinstance(data, dict) or type(data.get("format")) is not int:
            raise FormatError("not a flatlm manifest: no format version")
        if data["format"] < 1:
            raise FormatError(f"format {data['format']} is no version; copy or export the model again")
        if data["format"] > FORMAT:
            raise FormatError(f"format {data['format']}, this flatlm reads {FORMAT}; install a newer flatlm")
        for name, kinds in _KINDS.items():
            if name in data and (not isinstance(data[name], kinds) or isinstance(data[name], bool)):
                raise FormatError(f"{name} is {data[name]!r}")
        if not all(isinstance(layer, dict) for layer in data.get("layers", ())):
            raise FormatError("layers is a list of objects, one of them is none")
        unknown = sorted(data.keys() - {item.name for item in dataclasses.fields(cls)})
        if unknown:
            raise FormatError(f"a field is missing or unknown ({unknown[0]!r})")
        files = {name: _file_entry(name, entry) for name, entry in data.get("files", {}).items()}
        try:
            return cls(**{**data, "files": files, "layers": tuple(data.get("layers", ()))})
        except TypeError as error:
            raise FormatError(f"a field is missing or unknown ({error})") from error


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "architecture", "recipe", "flatlm"), (str,)),
    **dict.fromkeys(("vocab_size", "context_length", "parameters"), (int,)),
    **dict.fromkeys(("files", "totals", "calibration"), (dict,)),
    "bits_per_weight": (int, float),
    "layers": (list,),
}


@dataclass(frozen=True, slots=True)
class Artifact:
    path: Path
    manifest: Manifest
    graph: Graph


def open_artifact(path: Path | str) -> Artifact:
    """Reads manifest and graph and compares file sizes. Raises FormatError or IntegrityError."""
    path = Path(path)
    manifest = read_manifest(path)
    _check_sizes(path, manifest)
    graph = read_onnx(path / MODEL)
    for key in ("vocab_size", "context_length"):
        found, wanted = graph.metadata.get(key), str(getattr(manifest, key))
        if found != wanted:
            raise FormatError(
                f"{path}: {key} is {found} in {MODEL} and {wanted} in {MANIFEST}; export it again"
            )
    return Artifact(path, manifest, graph)


def read_manifest(path: Path | str) -> Manifest:
    file = Path(path) / MANIFEST
    try:
        content = read_regular(file)
    except (OSError, ValueError) as error:  # ValueError: no path at all, as one with a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        what = names.instead(Path(path)) if isinstance(error, OSError) else None
        raise IntegrityError(
            f"no exported model at {path}: "
            + (what or f"cannot read {file} ({reason}); `flatlm export` makes one")
        ) from error
    try:
        return Manifest.from_json(content)
    except FormatError as error:
        raise FormatError(f"{file}: {error}") from error


def verify_artifact(path: Path | str, progress: Progress | None = None) -> Manifest:
    """Re-hashes every file of the manifest; IntegrityError names all that differ. Progress is in bytes."""
    path = Path(path)
    manifest = read_manifest(path)
    _check_sizes(path, manifest)
    hashes = _hash_files(path, manifest.files, progress)
    changed = [name for name, entry in manifest.files.items() if hashes[name] != entry.sha256]
    if changed:
        raise IntegrityError(f"{path}: changed since export: {', '.join(changed)}; copy or export it again")
    return manifest


def write_manifest(folder: Path | str, progress: Progress | None = None, **fields: Any) -> Manifest:
    """Hashes every file in `folder` and writes flatlm.json; `fields` are Manifest's but for `files`."""
    folder = Path(folder)
    present = sorted(file.name for file in folder.iterdir() if file.is_file() and file.name != MANIFEST)
    hashes = _hash_files(folder, present, progress)
    files = {name: FileEntry(hashes[name], (folder / name).stat().st_size) for name in present}
    manifest = Manifest(**{"flatlm": __version__, **fields}, files=files)
    temporary = folder / (MANIFEST + ".part")
    temporary.write_text(manifest.to_json(), encoding="utf-8")
    os.replace(temporary, folder / MANIFEST)
    return manifest


def _check_sizes(path: Path, manifest: Manifest) -> None:
    for name, entry in {MODEL: None, **manifest.files}.items():
        if entry is None:
            raise FormatError(f"{path / MANIFEST} does not list {name}")
        try:
            facts = (path / name).stat()
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{path / name} is missing; copy or export the model again") from error
        if not stat.S_ISREG(facts.st_mode):
            raise IntegrityError(f"{path / name} is no regular file; copy or export the model again")
        size = facts.st_size
        if size != entry.size:
            raise IntegrityError(
                f"{path / name} has {size} bytes, the manifest says {entry.size}; copy or export it again"
            )


def _hash_files(folder: Path, files: Iterable[str], progress: Progress | None) -> dict[str, str]:
    files = list(files)
    total = sum((folder / name).stat().st_size for name in files)
    done, hashes = 0, {}
    for name in files:
        digest = hashlib.sha256()
        try:
            with open_regular(folder / name) as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                    done += len(chunk)
                    if progress:
                        progress(done, total)
        except OSError as error:
            raise IntegrityError(f"cannot read {folder / name}: {error.strerror}") from error
        hashes[name] = digest.hexdigest()
    return hashes


def _file_entry(name: str, entry: Any) -> FileEntry:
    if name in ("", ".", "..", MANIFEST) or "/" in name or "\\" in name:
        raise FormatError(f"the file name {name!r} leaves the folder")
    if not name.isprintable():
        raise FormatError(f"{name!r} is no name of a file")
    match entry:
        case {"sha256": str(sha256), "size": int(size)}:
            return FileEntry(sha256, size)
    raise FormatError(f"files: the entry of {name!r} needs sha256 and size")
