"""Graph → model.onnx + model.onnx.data, one constant in memory at a time.

Constants of 1 KiB and more go to the data file in the order in which the nodes use them, each on a
64-byte boundary, so that reading the file front to back is running the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper

from flatlm.export import ops
from flatlm.export.onnx_functions import OPSET, Bodies
from flatlm.runtime.errors import ResourceError, full_disk
from flatlm.runtime.format.functions import (
    DOMAIN,
    SIGNED,
    VERSION,
)
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.onnx_reader import ALIGNMENT, IR_VERSION, read_onnx
from flatlm.runtime.format.widths import caches_of
from flatlm.runtime.ops import signature
from flatlm.runtime.progress import Progress

MODEL, DATA = "model.onnx", "model.onnx.data"
EXTERNAL = 1024  # bytes from which a constant goes to the data file

_DTYPES = {
    "float32": TensorProto.FLOAT,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint4": TensorProto.UINT4,
}


def write_onnx(graph: Graph, folder: Path, progress: Progress | None = None) -> Graph:
    """Writes both files into `folder` and checks them with onnx; the graph as flatlm's own reader finds it.

    `graph.constants` may load on access: each constant is asked for once and let go. `progress` is told
    (constants written, constants). ResourceError if the disk is full; what was written so far stays.
    """
    folder = Path(folder)
    try:
        with (folder / DATA).open("wb") as data:
            constants = _write_constants(graph, data, progress)
        model = _model(graph, constants)
        (folder / MODEL).write_bytes(model.SerializeToString())
    except OSError as error:
        if full_disk(error):
            raise ResourceError(
                f"no space left for the model in {folder}; free some or choose another disk"
            ) from error
        raise
    onnx.checker.check_model(str(folder / MODEL))
    return read_onnx(folder / MODEL)


def _write_constants(graph: Graph, data: BinaryIO, progress: Progress | None) -> list[TensorProto]:
    names = [name for name in _names_in_use(graph.nodes) if name in graph.constants]
    protos = []
    if any(SIGNED in ops.of(node.op).file_inputs for node in graph.nodes):
        # external although it is small: onnxruntime lets a session replace only such a constant
        protos.append(_write_constant(SIGNED, Tensor.of(np.zeros((), np.uint8)), data, external=0))
    for done, name in enumerate(names, 1):
        protos.append(_write_constant(name, graph.constants[name], data))
        if progress:
            progress(done, len(names))
    return protos


def _names_in_use(nodes: Iterable[Node]) -> list[str]:
    """Input names in order of first use."""
    return list(dict.fromkeys(name for node in nodes for name in node.inputs))


def _write_constant(name: str, tensor: Tensor, data: BinaryIO, external: int = EXTERNAL) -> TensorProto:
    content = np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8).data
    elements = int(np.prod(tensor.shape, dtype=np.int64))
    size = (elements + 1) // 2 if tensor.dtype == "uint4" else elements * np.dtype(tensor.dtype).itemsize
    if len(content) != size:
        raise ValueError(f"constant {name}: {len(content)} bytes for {tensor.dtype} {list(tensor.shape)}")
    proto = TensorProto(name=name, data_type=_DTYPES[tensor.dtype], dims=tensor.shape)
    if size < external:
        proto.raw_data = bytes(content)
        return proto
    data.write(bytes(-data.tell() % ALIGNMENT))
    proto.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA), ("offset", str(data.tell())), ("length", str(size))):
        proto.external_data.add(key=key, value=value)
    data.write(content)
    return proto


def _model(graph: Graph, constants: list[TensorProto]) -> onnx.ModelProto:
    values = _value_infos(graph, {proto.name: list(proto.dims) for proto in constants})
    bodies = Bodies(graph.nodes)
    body = helper.make_graph(
        [_node(node, bodies.overload(node)) for node in graph.nodes],
        graph.metadata.get("name", "flatlm"),
        [values[name] for name in graph.inputs],
        [values[name] for name in graph.outputs],
        constants,
    )
    model = helper.make_model(
        body,
        functions=bodies.functions(),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=IR_VERSION,
        producer_name="flatlm",
    )
    helper.set_model_props(model, graph.metadata)
    return model


def _node(node: Node, overload: str | None) -> onnx.NodeProto:
    """The call; overload: of flatlm's function, None where it is a standard operator."""
    kinds = signature(node).attrs
    attrs = {name: kinds[name].kind(value) for name, value in node.attrs.items()}
    domain = "" if overload is None else DOMAIN
    inputs = (*node.inputs, *ops.of(node.op).file_inputs)
    return helper.make_node(
        node.op, inputs, node.outputs, node.name, domain=domain, overload=overload or None, **attrs
    )


def _value_infos(graph: Graph, shapes: dict[str, list[int]]) -> dict[str, onnx.ValueInfoProto]:
    """Types and shapes of the graph's inputs and outputs, as docs/format.md has them."""
    infos = {
        name: helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"])
        for name in ("input_ids", "position_ids")
    }
    for cache in caches_of(graph):
        for name, length in ((cache.past, "past"), (cache.present, "past + T")):
            shape: list[str | int] = ["B", *(length if size is None else size for size in cache.shape)]
            infos[name] = helper.make_tensor_value_info(name, _DTYPES[cache.dtype], shape)
    head = graph.head
    vocabulary = int(head.attrs["rows"]) if "rows" in head.attrs else shapes[head.inputs[1]][0]
    for name in graph.nodes[-1].outputs:
        infos[name] = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "T", vocabulary])
    return infos
