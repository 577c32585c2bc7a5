"""A GGUF model's files opened: all parts of a split one, their metadata and tensors, in either byte order.

model-00001-of-00003.gguf    metadata, tensors         split.no 0, split.count 3
model-00002-of-00003.gguf    tensors                   split.no 1, split.count 3
…
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flatlm.export.sources.gguf_header import Damaged, Entry, Header
from flatlm.runtime.errors import SourceError
from flatlm.runtime.settings import Settings

FLOATS = {"F32": "f4", "F16": "f2"}  # types that numpy has
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


def open_parts(path: Path) -> Opened:
    """The model of which `path` is a part, or all.

    Raises SourceError where a file is damaged or a part is missing.
    """
    first = _header(path)
    facts = _metadata(path, first)
    count = facts.get("split.count", int, 1, low=0, high=_MOST_PARTS)  # 0: converters that know no parts
    if count <= 1:
        return Opened((path,), facts, _tensors(path, first))
    paths = _part_paths(path, facts.need("split.no", int, low=0, high=count - 1), count)
    tensors: dict[str, Stored] = {}
    for number, part in enumerate(paths):
        header = first if part == path else _header(part)
        told = _metadata(part, header)
        if (told.get("split.no", int), told.get("split.count", int)) != (number, count):
            raise SourceError(f"{part} is not part {number + 1} of {count}, as its name says; fetch it again")
        for name, tensor in _tensors(part, header).items():
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


def _header(path: Path) -> Header:
    if importlib.util.find_spec("gguf") is None:
        raise SourceError(f"reading {path.name} needs the package gguf: pip install 'flatlm[export]'")
    try:
        return Header(path)
    except (Damaged, OSError, ValueError, OverflowError, MemoryError) as error:
        raise SourceError(f"{path} is truncated or damaged ({error}); fetch it again") from error


def _metadata(path: Path, header: Header) -> Settings:
    return Settings(header, path.name, SourceError)


def _tensors(path: Path, header: Header) -> dict[str, Stored]:
    """Raises SourceError where a tensor is there twice or reaches over the file's end."""
    found: dict[str, Stored] = {}
    for entry in header.tensors:
        stored = _stored(path, header, entry)
        if found.setdefault(entry.name, stored) is not stored:
            raise SourceError(f"{path} is truncated or damaged (tensor {entry.name} is there twice)")
    return found


def _stored(path: Path, header: Header, entry: Entry) -> Stored:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if entry.kind not in {kind.value for kind in GGMLQuantizationType}:
        raise SourceError(
            f"{path}: tensor {entry.name} is of type {entry.kind}, which the gguf package lacks"
        )
    kind = GGMLQuantizationType(entry.kind)
    weights, size = GGML_QUANT_SIZES[kind]
    count, shape = math.prod(entry.shape), entry.shape
    if entry.shape and entry.shape[-1] % weights:
        raise SourceError(f"{path}: rows of {entry.name} are no multiple of the {weights} of {kind.name}")
    end = entry.offset + count // weights * size
    if end > len(header.data):
        at = len(header.data)
        raise SourceError(f"{path} is truncated or damaged (tensor {entry.name} ends at byte {end} of {at})")
    data = header.data[entry.offset : end]
    if kind.name in FLOATS:
        data = data.view(f"{'>' if header.big_endian else '<'}{FLOATS[kind.name]}").reshape(shape)
    elif shape:
        data = data.reshape(*shape[:-1], shape[-1] // weights * size)
    return Stored(entry.name, kind.name, shape, data, header.big_endian)
