"""A GGUF file's header: metadata by key and where each tensor lies.

Read here and not by the gguf package, whose reader makes arrays of every one of 250,000 tokens before a file
can be refused. Strings and lists are decoded when they are asked for.

    "GGUF", version (4 bytes), number of tensors, number of keys (8 bytes each)
    each key       name, type (4 bytes), value; a list is the type of its elements, their number, and they
    each tensor    name, number of sizes (4 bytes), sizes (8 each, innermost first), type (4), offset (8)
    the rest       the tensors, from the next multiple of general.alignment on

A string is its length (8 bytes) and UTF-8. All numbers have the file's byte order, which the version tells.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flatlm.runtime.errors import SourceError

_VERSIONS = (2, 3)
_STRING, _LIST = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_SIZES = 8  # of a tensor
_DEFAULT_ALIGNMENT = 32


class Damaged(Exception):
    """What is wrong with the file, for the one error that names it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: `kind` is GGML's number of its type; shape outermost first; offset in the file."""

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class _Value:
    """A value not decoded yet: `count` elements of `kind` from `at` on, or one of them (−1)."""

    kind: int
    at: int
    count: int = -1


class Header(Mapping[str, Any]):
    """Metadata by key, `tensors` in their order. `big_endian` holds for both."""

    def __init__(self, path: Path) -> None:
        self.data = np.memmap(path, np.uint8, "r")
        self._path, self._bytes, self._at = path, memoryview(self.data), 4
        if bytes(self._bytes[:4]) != b"GGUF":
            raise Damaged("it does not begin with GGUF")
        self.big_endian = False
        (version,) = self._take("I")
        if not version & 0xFFFF:
            self.big_endian = True
            (version,) = struct.unpack(">I", struct.pack("<I", version))
        if version not in _VERSIONS:
            raise Damaged(f"version {version}; versions {_VERSIONS[0]} and {_VERSIONS[1]} are read")
        count, keys = self._take("QQ")
        self._values: dict[str, _Value] = {}
        self._decoded: dict[str, Any] = {}
        for _ in range(keys):
            name = self._text("a key")
            if name in self._values:
                raise Damaged(f"{name} is there twice")
            self._values[name] = self._skip_value()
        self.tensors = self._tensors(count)

    def __getitem__(self, key: str) -> Any:
        if key not in self._decoded:
            try:
                self._decoded[key] = self._value(self._values[key])
            except UnicodeDecodeError as error:
                where = f"{self._path.name}: {key}"
                raise SourceError(f"{where} holds bytes that are no UTF-8 ({error})") from None
        return self._decoded[key]

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _take(self, form: str) -> tuple[Any, ...]:
        """The next numbers."""
        form = (">" if self.big_endian else "<") + form
        try:
            found = struct.unpack_from(form, self._bytes, self._at)
        except struct.error:
            raise Damaged(f"it ends at byte {len(self._bytes)}, within what its header says") from None
        self._at += struct.calcsize(form)
        return found

    def _move(self, size: int) -> None:
        """Over so many bytes, which must be there."""
        self._at += size
        if self._at > len(self._bytes):
            raise Damaged(f"it ends at byte {len(self._bytes)}, within what its header says")

    def _text(self, what: str) -> str:
        try:
            return self._string()
        except UnicodeDecodeError:
            raise Damaged(f"the name of {what} is no UTF-8") from None

    def _string(self) -> str:
        (length,) = self._take("Q")
        start = self._at
        self._move(length)
        return bytes(self._bytes[start : self._at]).decode()

    def _skip_value(self) -> _Value:
        """Where the next value lies, and over it."""
        (kind,) = self._take("I")
        if kind != _LIST:
            value = _Value(kind, self._at)
            self._skip(kind, 1)
            return value
        kind, count = self._take("IQ")
        value = _Value(kind, self._at, count)
        self._skip(kind, count)
        return value

    def _skip(self, kind: int, count: int) -> None:
        if kind in _NUMBERS:
            self._move(count * struct.calcsize(_NUMBERS[kind]))
        elif kind == _STRING:
            for _ in range(count):
                self._move(*self._take("Q"))
        else:
            raise Damaged(f"a value of type {kind}")

    def _value(self, value: _Value) -> Any:
        self._at = value.at
        if value.kind == _STRING:
            strings = [self._string() for _ in range(abs(value.count))]
            return strings if value.count >= 0 else strings[0]
        numbers = list(self._take(f"{abs(value.count)}{_NUMBERS[value.kind]}"))
        return numbers if value.count >= 0 else numbers[0]

    def _tensors(self, count: int) -> list[Entry]:
        found = []
        for _ in range(count):
            name = self._text("a tensor")
            (sizes,) = self._take("I")
            if sizes > _MOST_SIZES:
                raise Damaged(f"tensor {name} has {sizes} sizes")
            shape = self._take(f"{sizes}Q")[::-1]
            kind, offset = self._take("IQ")
            found.append(Entry(name, kind, shape, offset))
        start, alignment = self._at, self.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise Damaged(f"general.alignment = {alignment!r}")
        first = -(-start // alignment) * alignment
        return [Entry(one.name, one.kind, one.shape, first + one.offset) for one in found]
