"""A safetensors file: where each tensor lies, and its values as float32.

Read here, in numpy alone (it has no bfloat16, safetensors' numpy interface therefore neither):

    8 bytes          little-endian length N of the header
    N bytes          JSON {name: {"dtype", "shape", "data_offsets": [begin, end)}, "__metadata__": …}
    the rest         the tensors, offsets counted from here, row-major, little-endian
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from flatlm.runtime import settings
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.settings import Settings

DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_HEADER_LIMIT = 100 << 20  # bytes; the limit of the safetensors library itself
_MOST = 1 << 48  # bytes and elements: more than any file has, and products of a few of them stay integers


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: `offset` bytes into `file`."""

    file: Path
    dtype: str  # of DTYPES where the tensor can be read
    shape: tuple[int, ...]
    offset: int

    def stored(self) -> np.ndarray:
        """The elements as they are in the file, mapped anew: a read weight's pages don't stay in memory."""
        count = math.prod(self.shape)
        if not count:
            return np.zeros(self.shape, DTYPES[self.dtype])
        try:
            flat = np.memmap(self.file, DTYPES[self.dtype], "r", self.offset, (count,))
        except (OSError, ValueError) as error:  # it went or was cut since its header was read
            raise SourceError(f"cannot read {self.file} ({error}); fetch it again") from error
        return flat.reshape(self.shape)


def read_header(path: Path) -> dict[str, Place]:
    """Where each tensor of a safetensors file lies; everything is checked against the file's size.

    Raises SourceError naming file and entry. A dtype that is not read is for `readable` to refuse: a tensor
    nobody asks for may have any.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise SourceError(
                    f"{path} is truncated or no safetensors file (header of {length} in {size} bytes)"
                )
            text = file.read(length)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    header = settings.parse(text, f"{path}: the safetensors header is damaged: it", SourceError)
    places = {name: _place(path, header, name, 8 + length, size) for name in header if name != "__metadata__"}
    spans = sorted((*header[name]["data_offsets"], name) for name in places)
    for (_, end, one), (begin, stop, other) in itertools.pairwise(spans):
        if begin < end and begin < stop:
            raise SourceError(f"{path}: {one} and {other} lie on the same bytes; fetch the file again")
    return places


def _place(path: Path, header: Settings, name: str, start: int, size: int) -> Place:
    entry = header.table(name)
    dtype, shape = entry.need("dtype", str), tuple(entry.each("shape", int, low=0, high=_MOST))
    offsets = entry.each("data_offsets", int, low=0, high=_MOST)
    if len(offsets) != 2 or "shape" not in entry:
        raise entry.wrong("data_offsets" if "shape" in entry else "shape", "begin and end, beside a shape")
    begin, end = offsets
    if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise SourceError(f"{path}: {name} has shape {list(shape)} {dtype} but {end - begin} bytes")
    if start + end > size:
        raise SourceError(f"{path} is truncated: {name} ends at byte {start + end}, the file at {size}")
    return Place(path, dtype, shape, start + begin)


class Stored(Protocol):
    """Where a tensor lies, and how."""

    @property
    def file(self) -> Path: ...
    @property
    def dtype(self) -> str: ...


def require_readable(name: str, place: Stored) -> None:
    """UnsupportedError where the tensor's dtype is not read."""
    if place.dtype not in DTYPES:
        raise UnsupportedError(
            f"{place.file}: {name} is stored as {place.dtype}; flatlm reads {', '.join(DTYPES)}"
        )


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Stored elements → fresh float32. A bfloat16 is the upper half of a float32."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)
