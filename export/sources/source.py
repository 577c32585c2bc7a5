"""What the rest of export knows of a model that is to be exported, wherever it came from."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from flatlm.runtime.errors import SourceError
from flatlm.runtime.settings import Settings

Files = Mapping[str, bytes | Path]  # file name in the artifact → its bytes, or the file to copy


class Source(Protocol):
    """A checkpoint with Hugging Face's names. Nothing large is in memory until it is read."""

    @property
    def name(self) -> str:
        """Short name for people: the folder's, the hub id, the file's stem."""

    @property
    def path(self) -> Path:
        """The folder or the file that is read."""

    @property
    def digest(self) -> str:
        """Cheap identity (sizes, times, headers; not every byte): the same model can be resumed."""

    @property
    def config(self) -> Settings:
        """config.json as Hugging Face writes it."""

    @property
    def files(self) -> Files:
        """tokenizer.json, tokenizer_config.json, generation_config.json, chat_template.jinja if any."""

    @property
    def gguf(self) -> bool:
        """Whether weights lie as GGUF files store them, where that is otherwise (`names.Name.gguf_folds`)."""

    @property
    def notes(self) -> Sequence[str]:
        """What people should know of how it was read, a line each."""

    def names(self) -> list[str]:
        """Every weight's name."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The weight's shape, from the header alone."""

    def read(self, name: str) -> np.ndarray:
        """One weight as a fresh float32 array, all of it finite. SourceError where it is not, is missing or
        damaged."""

    def renamed(self, ours: Mapping[str, str]) -> Source:
        """The same checkpoint with other names for those of its weights that are in `ours`."""

    def same(self, one: str, other: str) -> bool:
        """Whether two weights are one matrix stored twice: equal, as far as their storage can tell."""


_FOLLOWING = (
    "rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)


def is_ignored(name: str) -> bool:
    """A weight nobody reads: old checkpoints store rotary frequencies and masks, which the config implies."""
    return name.endswith(_FOLLOWING)


def require_finite(values: np.ndarray, name: str, file: str) -> None:
    """SourceError naming the first row that holds NaN or infinity."""
    if not values.size or (np.isfinite(values.min()) and np.isfinite(values.max())):
        return
    first = tuple(int(index[0]) for index in np.nonzero(~np.isfinite(values)))
    where = f"row {first[0]}, column {first[1]}" if len(first) > 1 else f"element {first[0]}"
    raise SourceError(
        f"{file}: {name} holds {values[first]} in {where}: the weights are damaged, or training diverged; "
        "fetch the file again or give another checkpoint"
    )


def json_bytes(value: object, indent: int | None = 1) -> bytes:
    """indent None: on one line, which takes a tenth of the time where the value is large."""
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()


def no_default(place: str, named: Iterable[str]) -> str:
    """The note on chat templates by name of which none is the default: to take one would be a guess."""
    return (
        f"{place} has chat templates called {', '.join(named)} and none called default: the model gets none; "
        "export from a folder with the one that is meant as chat_template.jinja"
    )


def missing_weight(source: str, name: str) -> SourceError:
    return SourceError(
        f"{source} has no weight {name}: the checkpoint is incomplete or of another architecture"
    )


def unknown_source(name: str, packaged: Sequence[str]) -> SourceError:
    close = difflib.get_close_matches(name.lower(), packaged, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the names are {', '.join(packaged)}"
    missing = name.lower().endswith(".gguf") or name.startswith((".", "/", "~"))
    what = "no such file or folder" if missing else "no model folder, .gguf file or hub id (owner/model)"
    return SourceError(f"{name}: {what}; {hint}")
