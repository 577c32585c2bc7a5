"""What the rest of export knows of a model that is to be exported, wherever it came from."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flatlm.runtime.errors import SourceError

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
    def config(self) -> Mapping[str, Any]:
        """config.json as Hugging Face writes it."""

    @property
    def files(self) -> Files:
        """tokenizer.json, tokenizer_config.json, generation_config.json, chat_template.jinja if any."""

    def names(self) -> list[str]:
        """Every weight's name."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The weight's shape, from the header alone."""

    def read(self, name: str) -> np.ndarray:
        """One weight as a fresh float32 array. SourceError where it is missing or damaged."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SourceError(f"{path} is not valid JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def json_bytes(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def chat_template(tokenizer_config: Mapping[str, Any]) -> str | None:
    """The default template of a tokenizer_config.json (a string, or a list of named ones)."""
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default") or next(iter(named.values()), None)
    return template


def missing_weight(source: str, name: str) -> SourceError:
    return SourceError(
        f"{source} has no weight {name}: the checkpoint is incomplete or of another architecture"
    )


def unknown_source(name: str, packaged: Sequence[str]) -> SourceError:
    close = difflib.get_close_matches(name.lower(), packaged, n=1)
    hint = f"did you mean {close[0]}?" if close else f"a name of: {', '.join(packaged)}"
    return SourceError(f"{name} is no model folder, .gguf file or hub id (owner/model) here; {hint}")
