"""Reads the protobuf wire format: enough for ONNX, without the protobuf package.

It knows nothing of ONNX. Lengths are checked against the bytes at hand, so damaged input raises
`DamagedError` and never allocates more than the input's own size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 (groups) are not in ONNX
MAX_VARINT = 10  # bytes of a 64-bit varint

Value = int | bytes | memoryview


class DamagedError(ValueError):
    """The bytes are no protobuf message, or end too early."""


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """(field number, value) of each field in order: an int for varints, a view of the bytes otherwise."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise DamagedError(f"field number 0 at byte {at}")
        if wire == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == BYTES:
            size, at = _varint(message, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise DamagedError(f"wire type {wire} at byte {at}")
        if size > end - at:
            raise DamagedError(f"a field of {size} bytes at byte {at}, where {end - at} are left")
        yield number, message[at : at + size]
        at += size


def varints(value: Value) -> Iterator[int]:
    """A repeated integer field's value: one varint, or packed ones."""
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = _varint(memoryview(value), at)
        yield number


def signed(value: Value) -> int:
    """A varint as int64."""
    number = integer(value)
    return number - (1 << 64) if number >= 1 << 63 else number


def integer(value: Value) -> int:
    if not isinstance(value, int):
        raise DamagedError("bytes where a number belongs")
    return value


def message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise DamagedError("a number where a message belongs")
    return memoryview(value)


def text(value: Value) -> str:
    try:
        return str(message(value), "utf-8")
    except UnicodeDecodeError as error:
        raise DamagedError("a name is not UTF-8") from error


def float32(value: Value) -> float:
    data = message(value)
    if len(data) != 4:
        raise DamagedError(f"a float of {len(data)} bytes")
    return float(struct.unpack("<f", data)[0])


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """(unsigned value, position after it)."""
    result = 0
    for i, byte in enumerate(data[at : at + MAX_VARINT]):
        result |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if result >= 1 << 64:
                break
            return result, at + i + 1
    raise DamagedError(f"an unfinished or too large number at byte {at}")
