"""A GGUF model's files opened: all parts of a split one, their metadata and tensors, in either byte order.

model-00001-of-00003.gguf    metadata, tensors         split.no 0, split.count 3
model-00002-of-00003.gguf    tensors                   split.no 1, split.count 3
…
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flatlm.runtime.errors import SourceError
from flatlm.runtime.settings import Settings

_MOST_PARTS = 99_999  # as many as the five digits of a part's name count


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in the mapped file: `data` are rows of elements or of quantized bytes."""

    name: str
    kind: str  # GGML's name of the type: F32, Q4_K …
    shape: tuple[int, ...]  # outermost first, as numpy's
    data: np.ndarray
    big_endian: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """`paths` are the model's files, the one with the metadata first."""

    paths: tuple[Path, ...]
    metadata: Settings
    tensors: Mapping[str, Stored]


class Fields(Mapping[str, Any]):
    """Metadata by key. Values are decoded when asked for and kept: there are lists of 150,000."""

    def __init__(self, file: str, fields: Mapping[str, Any]) -> None:
        self._file, self._fields = file, fields
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._decoded:
            try:
                self._decoded[key] = self._fields[key].contents()
            except UnicodeDecodeError as error:
                raise SourceError(f"{self._file}: {key} holds bytes that are no UTF-8 ({error})") from None
        return self._decoded[key]

    def __contains__(self, key: object) -> bool:
        return key in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def open_parts(path: Path) -> Opened:
    """The model of which `path` is a part, or all.

    Raises SourceError where a file is damaged or a part is missing.
    """
    first = _reader(path)
    facts = _metadata(path, first)
    count = facts.get("split.count", int, 1, low=0, high=_MOST_PARTS)  # 0: converters that know no parts
    if count <= 1:
        return Opened((path,), facts, _tensors(path, first))
    paths = _part_paths(path, facts.need("split.no", int, low=0, high=count - 1), count)
    tensors: dict[str, Stored] = {}
    for number, part in enumerate(paths):
        reader = first if part == path else _reader(part)
        told = _metadata(part, reader)
        if (told.get("split.no", int), told.get("split.count", int)) != (number, count):
            raise SourceError(f"{part} is not part {number + 1} of {count}, as its name says; fetch it again")
        for name, tensor in _tensors(part, reader).items():
            if tensors.setdefault(name, tensor) is not tensor:
                raise SourceError(f"{part}: tensor {name} is in an earlier part too; fetch the parts again")
        facts = told if number == 0 else facts
    total = facts.get("split.tensors.count", int, len(tensors))
    if total != len(tensors):
        raise SourceError(f"{paths[0]}: the {count} parts hold {len(tensors)} tensors, expected {total}")
    return Opened(paths, facts, tensors)


def stem(path: Path) -> str:
    """A model's name by its file, without the number of a part."""
    name, of, _ = path.stem.rpartition("-of-")
    return name[: -len("-00001")] if of and name[-5:].isdigit() and name[-6:-5] == "-" else path.stem


def _part_paths(path: Path, number: int, count: int) -> tuple[Path, ...]:
    advice = "; keep all parts in one folder under their own names, or join them: llama-gguf-split --merge"
    ending = f"-{number + 1:05d}-of-{count:05d}.gguf"
    if not path.name.endswith(ending):
        raise SourceError(f"{path} is part {number + 1} of {count}, whose name ends in {ending}{advice}")
    start = path.name.removesuffix(ending)
    paths = tuple(path.with_name(f"{start}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1))
    if missing := [part for part in paths if not part.is_file()]:
        raise SourceError(
            f"{path} is part {number + 1} of {count} and {missing[0].name} is missing "
            f"({len(missing)} missing in all){advice}"
        )
    return paths


def _reader(path: Path) -> Any:
    try:
        from gguf import GGUFReader, GGUFValueType
    except ImportError as error:
        raise SourceError(
            f"reading {path.name} needs the package gguf: pip install 'flatlm[export]'"
        ) from error

    class Bounded(GGUFReader):
        """Past the end of a file the library reads nothing, as often as a damaged length says: for ever.

        And lists are read in one go: the library makes three arrays of every element, of 300,000 in Qwen's.
        """

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
            self._need(offset + int(count) * np.dtype(dtype).itemsize)
            return super()._get(offset, dtype, count, override_order)

        def _need(self, end: int) -> None:
            if end > len(self.data):
                raise ValueError(f"it ends at byte {len(self.data)}, within what its header says")

        def _get_field_parts(
            self, orig_offs: int, raw_type: int
        ) -> tuple[int, list[Any], list[int], list[Any]]:
            if raw_type != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            heading = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
            kind, count = GGUFValueType(heading[0][0]), int(heading[1][0])
            start = orig_offs + 12
            if kind == GGUFValueType.STRING:
                texts, size = self._texts(start, count)
                places = list(range(2, 2 + count))
                return 12 + size, [*heading, *texts], places, [GGUFValueType.ARRAY, kind]
            if (dtype := self.gguf_scalar_to_np.get(kind)) is not None:
                values = self._get(start, dtype, count)
                return 12 + values.nbytes, [*heading, values], [2], [GGUFValueType.ARRAY, kind]
            return super()._get_field_parts(orig_offs, raw_type)

        def _texts(self, start: int, count: int) -> tuple[list[memoryview], int]:
            """`count` texts, each after its length of 8 bytes, and how many bytes they take."""
            data, texts, at = memoryview(self.data), list[memoryview](), start
            little = (sys.byteorder == "little") == (self.byte_order == "I")
            for _ in range(count):
                self._need(at + 8)
                end = at + 8 + int.from_bytes(data[at : at + 8], "little" if little else "big")
                self._need(end)
                texts.append(data[at + 8 : end])
                at = end
            return texts, at - start

    try:
        with np.errstate(all="ignore"):  # sizes of a damaged file overflow
            return Bounded(str(path))
    except (
        ValueError,
        LookupError,
        TypeError,
        ArithmeticError,
        OSError,
        MemoryError,
        RecursionError,
    ) as error:
        # What the library raises on cut and damaged files.
        raise SourceError(f"{path} is truncated or damaged ({error}); fetch it again") from error


def _metadata(path: Path, reader: Any) -> Settings:
    return Settings(Fields(path.name, reader.fields), path.name, SourceError)


def _tensors(path: Path, reader: Any) -> dict[str, Stored]:
    big = reader.endianess.name == "BIG"
    return {
        tensor.name: Stored(
            tensor.name,
            tensor.tensor_type.name,
            tuple(int(size) for size in reversed(tensor.shape)),
            tensor.data,
            big,
        )
        for tensor in reader.tensors
    }
