"""Saved prefixes as files: one each, named by its ids, checked when it is read, the oldest leave first.

A file is a line of JSON (key of the model, ids, shapes, a hash) and the bytes of the arrays. It is written
beside its place and moved there, so there is never half of one. Prompts stand in it: folder and files are
the user's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from flatlm.kernels_arm.files import foreign_path, open_regular
from flatlm.runtime.errors import UsageError

SUFFIX = ".prefix"
MOST_HEAD = 4 << 20  # bytes of the first line
FORMAT = 1


class PrefixFiles:
    """The files of one model in `folder`, of at most `most_bytes` together. `key` says what states are of."""

    def __init__(self, folder: Path, key: str, most_bytes: int) -> None:
        self._folder, self._most = folder, most_bytes
        self._key = hashlib.sha256(f"{FORMAT} {key}".encode()).hexdigest()
        self._writer = ThreadPoolExecutor(1, "flatlm-prefixes")  # nobody waits for the disk
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if reason := foreign_path(folder):
                raise UsageError(f"--cache-dir {folder} {reason}: take one of your own", param="cache_dir")
        except OSError as error:
            raise UsageError(f"--cache-dir {folder}: {error.strerror}", param="cache_dir") from None

    def known(self) -> Iterator[tuple[str, list[int]]]:
        """(name, ids) of this model's files, the one that was used last at the end."""
        for path in self._by_age():
            with contextlib.suppress(OSError, ValueError):
                with open_regular(path) as file:
                    head = self._head(file.readline(MOST_HEAD))
                yield path.name, head["ids"]

    def write(self, ids: Sequence[int], arrays: Sequence[np.ndarray]) -> str:
        """Begin to write; returns the name it will have."""
        name = hashlib.sha256(f"{self._key} {list(ids)}".encode()).hexdigest()[:32] + SUFFIX
        self._writer.submit(self._write, self._folder / name, list(ids), list(arrays))
        return name

    def _write(self, path: Path, ids: list[int], arrays: list[np.ndarray]) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for array in arrays:
            digest.update(np.ascontiguousarray(array).view(np.uint8))
        kinds = [(array.dtype.str, array.shape) for array in arrays]
        head = {"key": self._key, "ids": ids, "arrays": kinds, "hash": digest.hexdigest()}
        part = path.with_suffix(".part")
        with contextlib.suppress(OSError):  # a full disk costs a reading, no answer
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(json.dumps(head).encode() + b"\n")
                for array in arrays:
                    file.write(np.ascontiguousarray(array).data)
            os.replace(part, path)
        self._shrink()

    def read(self, name: str, ids: Sequence[int]) -> list[np.ndarray]:
        """The arrays of a file; none where it is not as it was written."""
        path = self._folder / name
        try:
            with open_regular(path) as file:
                head = self._head(file.readline(MOST_HEAD))
                arrays = list[np.ndarray]()
                digest = hashlib.blake2b(digest_size=16)
                for kind, shape in head["arrays"]:
                    size = math.prod(shape) * np.dtype(kind).itemsize
                    data = file.read(size)
                    digest.update(data)
                    arrays.append(np.frombuffer(data, kind).reshape(shape))
            if head["ids"] != list(ids) or digest.hexdigest() != head["hash"]:
                raise ValueError("it was changed")
            os.utime(path)
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return arrays

    def remove(self, name: str) -> None:
        if name:
            self._writer.submit((self._folder / name).unlink, True)

    def close(self) -> None:
        """All is written."""
        self._writer.shutdown()

    def _head(self, line: bytes) -> dict[str, Any]:
        head = json.loads(line)
        if not isinstance(head, dict) or head.get("key") != self._key:
            raise ValueError("it is of another model")
        return head

    def _by_age(self) -> list[Path]:
        found = []
        for path in self._folder.glob("*" + SUFFIX):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found)]

    def _shrink(self) -> None:
        """Remove the files that were used longest ago, of whatever model, until the rest fits."""
        left = self._most
        for path in reversed(self._by_age()):
            with contextlib.suppress(OSError):
                left -= path.stat().st_size
                if left < 0:
                    path.unlink()
