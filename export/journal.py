"""What is needed to go on with an export that was killed: written after every block, beside the target.

A hidden folder holds the state of each sweep as it was after its last block, and the constants of the blocks
that are done. It belongs to a key, a digest of source, recipe, calibration tokens and flatlm's own code: with
another key it is thrown away. A file appears under its name only when it is whole, and its checksums are read
with it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import io
import json
import os
import shutil
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from flatlm import export, kernels_arm, runtime
from flatlm.export.recipe import Recipe

_PACKAGES = ("flatlm.export.", "flatlm.runtime.")  # whose dataclasses may stand in a state
_DAMAGE = (  # what reading a file raises that is not what was saved
    OSError,
    EOFError,
    ImportError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,  # a header tells of more than there is
    RuntimeError,  # an encrypted member, a compression that nobody knows, nesting without end
    SyntaxError,  # numpy parses a header as Python
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def key(source: str, recipe: Recipe, tokens: np.ndarray, version: str) -> str:
    """Of a source's digest, a recipe, calibration ids and flatlm's version."""
    digest = hashlib.sha256(json.dumps([source, asdict(recipe), version, _code()]).encode())
    digest.update(np.ascontiguousarray(tokens, np.int64).tobytes())
    return digest.hexdigest()


def _code() -> dict[str, str]:
    """Digests of all sources of the packages that have a part in an export, by package and file.

    All rather than a list of them: what other code has decided is of another export.
    """
    return {
        f"{package.__name__}/{path.relative_to(folder).as_posix()}": hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for package in (export, runtime, kernels_arm)
        for folder in map(Path, package.__path__)
        for path in sorted(folder.rglob("*.py"))
    }


class Journal:
    """The states of one export by name. Without a folder it keeps nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @classmethod
    def open(cls, folder: Path, key: str, say: Callable[[str], None]) -> Journal:
        """The journal in `folder`, emptied (and told so) if it is of another key."""
        stored = folder / "key"
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            say(f"{folder} is not a folder: starting anew")
            folder.unlink()
        elif folder.exists() and any(folder.iterdir()) and not _holds(stored, key.encode()):
            say(f"{folder} is of another export or version: starting anew")
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        journal = cls(folder)
        journal._write("key", key.encode())
        return journal

    def save(self, name: str, state: object) -> None:
        """Nested dicts, lists, tuples, dataclasses, arrays and plain values."""
        if self._folder is None:
            return
        arrays: list[np.ndarray] = []
        tree = json.dumps(_encode(state, arrays)).encode()
        buffer = io.BytesIO()
        np.savez(buffer, np.frombuffer(tree, np.uint8), *arrays)
        self._write(f"{name}.npz", buffer.getbuffer())

    def load(self, name: str) -> Any:
        """The state saved last under `name`; None if there is none, or it is damaged."""
        if self._folder is None or not (self._folder / f"{name}.npz").is_file():
            return None
        try:
            with (self._folder / f"{name}.npz").open("rb") as file, np.load(file) as stored:
                arrays = [stored[f"arr_{i}"] for i in range(len(stored.files))]
            return _decode(json.loads(arrays[0].tobytes()), arrays[1:])
        except _DAMAGE:
            return None

    @property
    def started(self) -> bool:
        """Whether there is anything to go on from."""
        return self._folder is not None and any(self._folder.glob("*.npz"))

    def _write(self, name: str, content: bytes | memoryview) -> None:
        assert self._folder is not None
        part = self._folder / f"{name}.part"
        part.write_bytes(content)
        os.replace(part, self._folder / name)


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _encode(value: Any, arrays: list[np.ndarray]) -> Any:
    """As JSON: lists are [kind, …], arrays are numbers into `arrays`."""
    if isinstance(value, np.ndarray | np.generic):
        arrays.append(np.asarray(value))
        return ["array", len(arrays) - 1, isinstance(value, np.generic)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return ["class", type(value).__module__, type(value).__qualname__, _encode(fields, arrays)]
    if isinstance(value, dict):
        return ["dict", [[_encode(k, arrays), _encode(v, arrays)] for k, v in value.items()]]
    if isinstance(value, list | tuple):
        return [type(value).__name__, [_encode(item, arrays) for item in value]]
    assert value is None or isinstance(value, bool | int | float | str), type(value)
    return value


def _decode(tree: Any, arrays: list[np.ndarray]) -> Any:
    if not isinstance(tree, list):
        return tree
    kind, *rest = tree
    if kind == "array":
        return arrays[rest[0]][()] if rest[1] else arrays[rest[0]]
    if kind == "class":
        module, name, fields = rest
        if not module.startswith(_PACKAGES):
            raise ValueError(module)
        made = getattr(importlib.import_module(module), name)
        if not dataclasses.is_dataclass(made):
            raise ValueError(name)
        return cast(Callable[..., Any], made)(**_decode(fields, arrays))
    if kind == "dict":
        return {_decode(k, arrays): _decode(v, arrays) for k, v in rest[0]}
    return {"list": list, "tuple": tuple}[kind](_decode(item, arrays) for item in rest[0])
