"""model.onnx + model.onnx.data → Graph, without the onnx package.

Constants are views of the mapped data file, read-only and on 64-byte boundaries. Function bodies are
not read: the runtime has its own kernels for them (docs/format.md). Everything is checked here, before
anything is allocated: `FormatError` for what flatlm does not know or what does not fit,
`IntegrityError` for missing, cut or foreign files.
"""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path

import numpy as np

from flatlm.kernels_arm.files import open_regular
from flatlm.runtime import ops
from flatlm.runtime.errors import FormatError, IntegrityError
from flatlm.runtime.format import functions, widths
from flatlm.runtime.format import protobuf as wire
from flatlm.runtime.format.graph import Attribute, Graph, Node, Tensor
from flatlm.runtime.format.signature import label

IR_VERSION = 11
OPSET = 23
ALIGNMENT = 64  # a cache line and a 512-bit register
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 48  # zeros among the dimensions not counted: no array has more

# TensorProto.DataType → name, bits of an element
_DTYPES = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    6: ("int32", 32),
    7: ("int64", 64),
    21: ("uint4", 4),
}
_FLOAT, _INT, _STRING = 1, 2, 3  # AttributeProto.AttributeType


def read_onnx(path: Path | str) -> Graph:
    """Reads and checks the model; its constants stay in the mapped file for as long as they are used."""
    path = Path(path)
    try:
        graph = _Reader(path).model(_map(path).data)
        functions.check_graph(graph)
        widths.check_values(graph)
    except wire.DamagedError as error:
        raise IntegrityError(f"{path} is damaged or truncated ({error}); copy or export it again") from error
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    return graph


class _Reader:
    """Reads one model; its external data files are mapped once each."""

    def __init__(self, model: Path) -> None:
        self._folder = model.parent
        self._files: dict[str, np.ndarray] = {}

    def model(self, model: memoryview) -> Graph:
        """Of the bytes of model.onnx."""
        versions: dict[str, int] = {}
        metadata: dict[str, str] = {}
        graphs: list[memoryview] = []
        ir_version = 0
        for number, value in wire.fields(model):
            if number == 1:
                ir_version = wire.integer(value)
            elif number == 7:
                graphs.append(wire.message(value))
            elif number == 8:
                entry = dict(wire.fields(wire.message(value)))
                versions[wire.text(entry.get(1, b""))] = wire.integer(entry.get(2, 0))
            elif number == 14:
                metadata.update([_entry(value)])
        _check_versions(ir_version, versions)
        if len(graphs) != 1:
            raise wire.DamagedError(f"{len(graphs)} graphs in the model")
        graph = self._graph(graphs[0])
        graph.metadata = metadata
        return graph

    def _graph(self, message: memoryview) -> Graph:
        graph = Graph()
        for number, value in wire.fields(message):
            if number == 1:
                graph.nodes.append(_read_node(wire.message(value)))
            elif number == 5:
                name, tensor = self._tensor(wire.message(value))
                if name in graph.constants:
                    raise FormatError(f"tensor {name!r} is there twice")
                graph.constants[name] = tensor
            elif number in (11, 12):
                name = next((wire.text(v) for n, v in wire.fields(wire.message(value)) if n == 1), "")
                (graph.inputs if number == 11 else graph.outputs).append(name)
            elif number == 15:
                raise FormatError("sparse initializers are not part of the format")
        graph.constants.pop(functions.SIGNED, None)
        return graph

    def _tensor(self, message: memoryview) -> tuple[str, Tensor]:
        shape: list[int] = []
        external: dict[str, str] = {}
        name, code, outside, raw = "", 0, False, memoryview(b"")
        for number, value in wire.fields(message):
            if number == 1:
                shape.extend(wire.signed(size) for size in wire.varints(value))
            elif number == 2:
                code = wire.integer(value)
            elif number == 8:
                name = wire.text(value)
            elif number == 9:
                raw = wire.message(value)
            elif number == 13:
                external.update([_entry(value)])
            elif number == 14:
                outside = value == 1
            elif number in (4, 5, 6, 7, 10, 11):
                raise FormatError(
                    f"tensor {name!r} keeps its values in a typed field; the format has raw bytes only"
                )
        if code not in _DTYPES:
            raise FormatError(f"tensor {name!r} has data type {code}, the format has {sorted(_DTYPES)}")
        possible = len(shape) <= MAX_DIMENSIONS and min(shape, default=0) >= 0
        if not possible or math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
            raise FormatError(f"tensor {name!r} has the impossible shape {shape[: MAX_DIMENSIONS + 1]}")
        dtype, bits = _DTYPES[code]
        size = (math.prod(shape) * bits + 7) // 8
        data = self._view(name, external, size) if outside else _aligned(name, raw, size)
        return name, Tensor(
            dtype, tuple(shape), data if dtype == "uint4" else data.view(dtype).reshape(shape)
        )

    def _view(self, name: str, entries: dict[str, str], size: int) -> np.ndarray:
        """The bytes of tensor `name`, uint8 [size]; `size` is what its shape and dtype need."""
        location = entries.get("location", "")
        if location not in self._files:
            self._files[location] = _map(self._inside(name, location))
        file, where = self._files[location], f"tensor {name!r} in {self._folder / location}"
        try:
            offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(size)))
        except ValueError as error:
            raise FormatError(f"{where}: offset or length is no number: {entries}") from error
        if length != size:
            raise FormatError(f"{where}: {length} bytes, where shape and data type need {size}")
        if offset < 0 or offset % ALIGNMENT:
            raise FormatError(f"{where}: offset {offset} is no multiple of {ALIGNMENT}")
        if offset + size > len(file):
            raise IntegrityError(
                f"{where}: needs bytes {offset} to {offset + size}, the file has {len(file)}; "
                "it is truncated, copy or export it again"
            )
        return file[offset : offset + size]

    def _inside(self, name: str, location: str) -> Path:
        """The location is the file's word and stays in the folder; where links there lead is the user's."""
        path = Path(location)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in location:
            raise IntegrityError(
                f"tensor {name!r} points to {location!r}, outside of {self._folder}: refused"
            )
        return self._folder / path


def _check_versions(ir_version: int, versions: dict[str, int]) -> None:
    advice = "install a newer flatlm or export the model with this one"
    if not 1 <= ir_version <= IR_VERSION:
        raise FormatError(f"ONNX IR version {ir_version}, this flatlm reads up to {IR_VERSION}; {advice}")
    expected = {"": OPSET, functions.DOMAIN: functions.VERSION}
    for domain, version in [*versions.items(), *((name, 0) for name in expected if name not in versions)]:
        if domain not in expected:
            raise FormatError(f"the domain {domain!r} is unknown; flatlm runs only what flatlm has exported")
        if domain == functions.DOMAIN and version < functions.VERSION:
            raise FormatError(
                f"an artifact of an older format: functions {domain!r} version {version}, this flatlm reads "
                f"{functions.VERSION}; `flatlm export SRC OUT --force` makes it again from its source"
            )
        if version != expected[domain]:
            name = f"functions {domain!r}" if domain else "opset"
            raise FormatError(f"{name} version {version}, this flatlm reads {expected[domain]}; {advice}")


def _read_node(message: memoryview) -> Node:
    strings: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: [], 7: []}
    attrs: dict[str, Attribute] = {}
    for number, value in wire.fields(message):
        if number in strings:
            strings[number].append(wire.text(value))
        elif number == 5:
            attrs.update([_read_attribute(wire.message(value))])
    name, function, domain = ("".join(strings[number]) for number in (3, 4, 7))
    op = function.partition("_")[0]  # what follows are options, which stand in the attributes, too
    if op in ops.QUANTIZING and strings[1][-1:] == [functions.SIGNED]:
        del strings[1][-1]
    node = Node(op, tuple(strings[1]), tuple(strings[2]), attrs, name)
    if (op in functions.STANDARD) != (domain == "") or domain not in ("", functions.DOMAIN):
        raise FormatError(f"{label(node)}: the domain {domain!r} has no such function")
    return node


def _read_attribute(message: memoryview) -> tuple[str, Attribute]:
    entry = dict(wire.fields(message))
    name, kind = wire.text(entry.get(1, b"")), entry.get(20)
    if kind == _INT:
        return name, wire.signed(entry.get(3, 0))
    if kind == _FLOAT:
        return name, wire.float32(entry.get(2, bytes(4)))
    if kind == _STRING:
        return name, wire.text(entry.get(4, b""))
    raise FormatError(f"attribute {name!r} is of a kind that is not part of the format")


def _map(path: Path) -> np.ndarray:
    """The file as read-only uint8 [size]."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise IntegrityError(f"{path} is empty; copy or export it again")
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise IntegrityError(f"cannot read {path}: {error.strerror}") from error


def _aligned(name: str, raw: memoryview, size: int) -> np.ndarray:
    """A copy of a small constant's bytes that begins on a boundary, as the mapped ones do."""
    if len(raw) != size:
        raise FormatError(f"tensor {name!r}: {len(raw)} bytes, where shape and data type need {size}")
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    data = buffer[start : start + size]
    data[:] = np.frombuffer(raw, np.uint8)
    data.flags.writeable = False
    return data


def _entry(value: wire.Value) -> tuple[str, str]:
    """A StringStringEntryProto."""
    entry = dict(wire.fields(wire.message(value)))
    return wire.text(entry.get(1, b"")), wire.text(entry.get(2, b""))
