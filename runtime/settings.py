"""Settings from outside, read with care: a JSON object is parsed, then asked by key, kind and range.

    config = settings.read(folder / "config.json", SourceError)
    heads = config.need("num_attention_heads", int, low=1)
    theta = config.get("rope_theta", float, 10000.0, above=0)

Whatever the file holds, the answer is a value of the kind asked for or the reader's own error, which names
file, key, value and what was expected. Null counts as absent.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from flatlm.kernels_arm.files import open_regular
from flatlm.runtime.errors import FlatlmError, first_line

T = TypeVar("T", str, int, float, bool)
D = TypeVar("D")

LIMIT = 256 << 20  # bytes; the largest real file, an index or a tokenizer's config, has a few MB
DEPTH = 64  # of objects and lists in one another; well before Python's own recursion ends
_KINDS = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Settings:
    """`values` of `place`, a file's name; `error` is what is raised, `within` the object they are in."""

    values: Mapping[str, Any]
    place: str
    error: type[FlatlmError]
    within: str = ""

    def __getitem__(self, key: str) -> Any:
        """The value as it stands, unchecked."""
        return self.values[key]

    def __contains__(self, key: object) -> bool:
        return key in self.values

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def get(self, key: str, kind: type[T], default: T, **bounds: float) -> T: ...
    @overload
    def get(self, key: str, kind: type[T], default: None = None, **bounds: float) -> T | None: ...
    def get(self, key: str, kind: type[Any], default: Any = None, **bounds: float) -> Any:
        """The value, `default` where there is none; `bounds` as of `need`."""
        if self.values.get(key) is None:
            return default
        return self._checked(key, self.values[key], kind, **bounds)

    def need(self, key: str, kind: type[T], **bounds: float) -> T:
        """The value, an error where there is none. Bounds: `low` and `high` inclusive, `above` exclusive.

        A float may be written as an integer and is finite; an integer is never a truth value.
        """
        value: T = self._checked(key, self.values.get(key), kind, **bounds)
        return value

    def each(self, key: str, kind: type[T], **bounds: float) -> list[T]:
        """The elements of a list, [] where there is none."""
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(key, f"a list, each element {_expected(kind, bounds)}")
        return [self._checked(f"{key}[{i}]", one, kind, **bounds) for i, one in enumerate(value)]

    def one_or_more(self, key: str, kind: type[T], **bounds: float) -> list[T]:
        """As `each`, where a single value may stand in the place of a list of one."""
        value = self.values.get(key)
        if value is None or isinstance(value, list):
            return self.each(key, kind, **bounds)
        return [self._checked(key, value, kind, **bounds)]

    def table(self, key: str) -> Settings:
        """The settings of an object within this one, empty where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return Settings(value or {}, self.place, self.error, f"{self.within}{key}.")

    def tables(self, key: str) -> list[Settings]:
        """The objects of a list, [] where there is none."""
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
            raise self.wrong(key, "a list of objects")
        names = (f"{self.within}{key}[{i}]." for i in range(len(value)))
        return [Settings(one, self.place, self.error, name) for one, name in zip(value, names, strict=True)]

    def wrong(self, key: str, expected: str) -> FlatlmError:
        """The error of a value that is not as `expected`."""
        return self._wrong(key, self.values.get(key), expected)

    def _wrong(self, key: str, value: Any, expected: str) -> FlatlmError:
        name = f"{self.within}{key}"
        found = f"{name} = {reprlib.repr(value)}" if key.partition("[")[0] in self.values else f"no {name}"
        return self.error(f"{self.place} has {found}, expected {expected}")

    def _checked(self, key: str, value: Any, kind: type[Any], **bounds: float) -> Any:
        given = _number(value) if kind is float else value if type(value) is kind else None
        if given is None or not _within(given, **bounds):
            raise self._wrong(key, value, _expected(kind, bounds))
        return given


def _number(value: Any) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _within(
    value: Any, low: float | None = None, high: float | None = None, above: float | None = None
) -> bool:
    return not (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    )


def _expected(kind: type[Any], bounds: Mapping[str, float]) -> str:
    names = {"low": "at least", "high": "at most", "above": "above"}
    return " ".join([_KINDS[kind], *(f"{names[name]} {bound:g}" for name, bound in bounds.items())])


def loads(text: bytes) -> Any:
    """The JSON value in `text`. ValueError where it is no JSON or no Unicode, is nested without end, or gives
    a key two values: whatever json.loads does with such a file, another reader does something else."""
    try:
        value = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_unique)
        if b"\\u" in text:  # an escape can spell half a character, which no file can hold again
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("objects and lists are nested without end") from None
    if _depth(value) > DEPTH:
        raise ValueError(f"objects and lists are nested more than {DEPTH} deep")
    return value


def parse(
    text: bytes, place: str, error: type[FlatlmError], advice: str = "fetch the file again"
) -> Settings:
    """The JSON object in `text`; `error`, with `advice`, where there is none."""
    try:
        value = loads(text)
    except ValueError as problem:
        raise error(f"{place} is not valid JSON ({first_line(problem)}); {advice}") from None
    if not isinstance(value, dict):
        kinds = {str: "text", bool: "truth value", type(None): "null", int: "number", float: "number"}
        kind = kinds.get(type(value), type(value).__name__)
        raise error(f"{place} holds a JSON {kind}, expected an object; {advice}")
    return Settings(value, place, error)


def read(path: Path, error: type[FlatlmError], advice: str = "fetch the file again") -> Settings:
    """The JSON object in the file `path`; errors as `parse`, and where it cannot be read."""
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > LIMIT:
                raise error(f"{path} has {size} bytes, which no settings have; {advice}")
            text = file.read()
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}") from problem
    return parse(text, str(path), error, advice)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        for key, one in pairs:
            if value[key] != one:
                raise ValueError(f"{key!r:.80} stands there twice with different values")
    return value


def _depth(value: Any) -> int:
    depth, layer = 0, [value] if isinstance(value, dict | list) else []
    while layer and depth <= DEPTH:
        depth += 1
        layer = [
            child
            for one in layer
            for child in (one.values() if isinstance(one, dict) else one)
            if isinstance(child, dict | list)
        ]
    return depth
