"""From a word to a model of the models' folder: fetched where needed, exported once, found again.

a name that `flatlm pull` knows, a hub id, a GGUF file, a Hugging Face folder
    → NAME of the models' folder, exported by a recipe
a hub id whose repository holds flatlm.json
    → the same, verified and used as it is
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from flatlm.export.recipe import Recipe
from flatlm.runtime import models, names
from flatlm.runtime.errors import BackendError, UsageError
from flatlm.runtime.format.artifact import MANIFEST, read_manifest, verify_artifact
from flatlm.runtime.progress import Progress

if TYPE_CHECKING:
    from flatlm.export.sources.source import Source


@dataclass(frozen=True, slots=True)
class Shelved:
    """A model of the folder. `seconds`: what making it took; None: it was there, or came ready."""

    path: Path
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Talk:
    """Where people are told what goes on. `tell` names a stage and returns what is told (done, all)."""

    tell: Callable[[str], Progress]
    stream: TextIO | None

    def say(self, line: str) -> None:
        if self.stream is not None:
            self.stream.write(f"{line}\n")
            self.stream.flush()


def name_for(word: str) -> str:
    """What a model of that source is called unless told otherwise."""
    path = Path(word).expanduser()
    last = path.resolve().name if path.exists() else word.rstrip("/").rpartition("/")[2]
    stem = last[: -len(".gguf")] if last.lower().endswith(".gguf") else last
    name = re.sub(r"[^\w.+-]+", "-", stem.lower(), flags=re.ASCII).strip("-.")
    if not names.is_name(name):
        raise UsageError(f"{word} gives no name for a model: give one with --name")
    return name


def shelve(word: str, recipe: Recipe, talk: Talk, name: str | None = None) -> Shelved:
    """The model of `word` in the models' folder, called `name`, made where it is not there yet.

    Raises UsageError where another model has its name, BackendError where packages for exporting are missing,
    and what fetching and exporting raise.
    """
    came_from = origin_of(word)
    target = names.place_of(name or name_for(word))
    if (target / MANIFEST).is_file():
        other = models.origin(target.name)
        if other not in ("", came_from):
            raise UsageError(
                f"{target.name} is the name of {other} already: `flatlm run {target.name}` runs that, "
                "--name NAME makes another"
            )
        return Shelved(target)
    if not Path(word).expanduser().exists() and fetch_ready(word, target, talk.stream):
        return Shelved(target)
    open_source, export = _exporting(word)
    target.parent.mkdir(parents=True, exist_ok=True)
    source = open_source(word, talk.stream)
    start = time.monotonic()
    export(source, target, recipe, tell=talk.tell, say=talk.say)
    models.note_use(target, came_from)
    return Shelved(target, time.monotonic() - start)


def fetch_ready(word: str, target: Path, talk: TextIO | None) -> bool:
    """Whether `word` is a hub id of a finished artifact; then it is verified, and stands in `target`."""
    from flatlm.export.sources import hub

    if not hub.is_hub_id(word):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        if not hub.fetch_files(word, half, [MANIFEST]):
            return False
        listed = list(read_manifest(half).files)
        if talk is not None:
            talk.write(f"{word} is an exported model: fetching {len(listed)} files\n")
        hub.fetch_files(word, half, listed)
        shutil.rmtree(half / ".cache", ignore_errors=True)  # of huggingface_hub
        verify_artifact(half)
        if os.path.lexists(target):
            raise UsageError(f"{target} exists already: move it away, or `flatlm rm {target.name}`")
        half.chmod(0o755)
        os.replace(half, target)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    models.note_use(target, word)
    return True


def origin_of(word: str) -> str:
    """What is noted of where a model came from."""
    path = Path(word).expanduser()
    return str(path.resolve()) if path.exists() else word


def _exporting(word: str) -> tuple[Callable[..., Source], Callable[..., object]]:
    """What opens a source, and what exports it; BackendError where their packages are missing."""
    try:
        from flatlm.export.exporter import export
        from flatlm.export.sources import open_source
    except ImportError as error:
        raise BackendError(
            f"{word} has to be exported first, which needs packages that are not installed ({error}): "
            "pip install 'flatlm[export]'. Or export it on another machine and `flatlm push` it here"
        ) from None
    return open_source, export
