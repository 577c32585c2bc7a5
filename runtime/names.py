"""Models by name: what a word means where a model is asked for, a path or a name of the models' folder.

    FLATLM_MODELS, else $XDG_DATA_HOME/flatlm/models, else ~/.local/share/flatlm/models
        NAME/           an artifact
        .used/NAME      where it came from, in a line; its time is that of the last use (runtime/models.py)

What exists on disk under the word as it stands always comes first: a name never hides a folder.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from flatlm.runtime.errors import UsageError

MANIFEST = "flatlm.json"  # what makes a folder an exported model
PLACE = "FLATLM_MODELS"  # environment: the models' folder
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,127}", re.ASCII)


def folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where models by name are; it may not be there yet."""
    if told := environment.get(PLACE):
        return Path(told).expanduser()
    data = environment.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "flatlm" / "models"


def is_name(word: str) -> bool:
    """Whether a model may be called so: letters, digits and `._+-`, no folder within."""
    return _NAME.fullmatch(word) is not None


def place_of(name: str) -> Path:
    """The folder that a model of that name has or would have. UsageError for what is no name."""
    if not is_name(name):
        raise UsageError(f"{name!r} is no name for a model: letters, digits, . _ + and - are")
    return folder() / name


def find(word: str | Path) -> Path | None:
    """The folder meant by a path or a name; None where there is neither."""
    if os.path.isdir(word):
        return Path(word)
    named = folder() / word if is_name(str(word)) else None
    return named if named is not None and (named / MANIFEST).is_file() else None


def resolve(word: str | Path) -> Path:
    """As `find`; where there is neither, the word as a path, which opening it will say."""
    return find(word) or Path(word)


def named() -> list[str]:
    """The names there are, sorted."""
    try:
        entries = sorted(os.listdir(folder()))
    except OSError:
        return []
    return [name for name in entries if is_name(name) and (folder() / name / MANIFEST).is_file()]


def known(word: str) -> str:
    """`; did you mean 'x'?` of the models there are, or all of them."""
    names = named()
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(names)}" if names else f"; {folder()} holds none yet"


def instead(path: Path) -> str | None:
    """What `path`, which is no exported model, is instead, and what to do; None: nothing is known of it."""
    if path.is_dir():
        if (path / "config.json").is_file():
            return f"it is a model to export: `flatlm run {path}`, or `flatlm export {path}`"
        return None
    if path.suffix.lower() == ".gguf":
        if path.is_file():
            return f"it is a GGUF file: `flatlm run {path}`, or `flatlm export {path}`"
        return "there is no such file"
    if path.exists():
        return "it is a file; a model is a folder that `flatlm export` makes"
    word = str(path)
    if is_name(word):
        return f"neither a folder nor a name{known(word)} (`flatlm run NAME` fetches a model)"
    if word.count("/") == 1 and all(map(is_name, word.split("/"))):
        return (
            f"there is no such folder; `flatlm run {word}` fetches it from the hub, `flatlm export` makes one"
        )
    return None
