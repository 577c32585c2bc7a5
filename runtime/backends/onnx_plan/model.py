"""model.onnx → the plan: the same nodes, whose functions are rewritten, with a cache of fixed places.

What goes in, of one sequence: `input_ids` and `position_ids` int64 [1, T]; `plan.write` int64 [1], the first
new position; `plan.key_positions` int64 [S], 0 … S - 1; `plan.rows` int64 [R], those of the T tokens whose
logits are wanted; and the parts of the cache, [1, heads, S, columns]. Out come `logits` [1, R, V] and the
parts of the cache, meant to be the very memory that went in.

Legend: T tokens of a call, S places of the cache, R rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flatlm.runtime.format.functions import DOMAIN
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.format.widths import LOGITS, caches_of

from .calls import Call, Rewrite
from .exact import KEYS, QUERIES, REWRITES, WRITE, rewrite
from .functions import MICROSOFT, OPSET, Refused, made

ROWS = "plan.rows"
DATA_FOLDER = "session.model_external_initializers_file_folder_path"
SMALL = 1 << 16  # bytes up to which a new constant stands in the model's message


@dataclass(frozen=True, slots=True)
class Plan:
    """A model for onnxruntime, which reads the file's own constants in `folder`, and those that are new."""

    model: onnx.ModelProto
    arrays: dict[str, np.ndarray]
    folder: Path

    def hand_over(self, ort: Any, options: Any) -> None:
        """What is not in the model's message, to a session's options."""
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self.arrays.values()]
        options.add_external_initializers(list(self.arrays), values)
        options.add_session_config_entry(DATA_FOLDER, str(self.folder))


def plan_of(folder: Path, graph: Graph, product: str, table: Mapping[str, Rewrite] = REWRITES) -> Plan:
    """The plan of the model in `folder`, which `graph` was read of. Refused where it cannot be one.

    product: the form of products, a key of products.PRODUCTS.
    """
    if fixed := [cache.past for cache in caches_of(graph) if not cache.grows]:
        raise Refused(f"its state {fixed[0]} is no cache with a place for each position")
    return _Maker(folder, graph, product, table).plan()


class _Maker:
    def __init__(self, folder: Path, graph: Graph, product: str, table: Mapping[str, Rewrite]) -> None:
        self._folder, self._graph, self._product, self._table = folder, graph, product, table
        self._file = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        self._bodies = {(function.name, function.overload): function for function in self._file.functions}
        self._functions: dict[tuple[str, str], onnx.FunctionProto] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def plan(self) -> Plan:
        nodes = self._nodes()
        used = {name for node in nodes for name in node.input}
        initializers = [one for one in self._file.graph.initializer if one.name in used]
        large = {name: array for name, array in self._arrays.items() if array.nbytes > SMALL}
        initializers += [
            _beside(name, array) if name in large else numpy_helper.from_array(array, name)
            for name, array in self._arrays.items()
        ]
        inputs, outputs = self._values()
        model = helper.make_model(
            helper.make_graph(nodes, "plan", inputs, outputs, initializers),
            functions=list(self._functions.values()),
            opset_imports=[helper.make_opsetid(*pair) for pair in (("", OPSET), (DOMAIN, 1), (MICROSOFT, 1))],
            ir_version=self._file.ir_version,
            producer_name="flatlm",
        )
        return Plan(model, large, self._folder)

    def _nodes(self) -> list[onnx.NodeProto]:
        caches = {cache.present for cache in caches_of(self._graph)}
        infer = helper.make_tensor("plan.column", TensorProto.INT64, [2], [-1, 1])
        nodes = [
            helper.make_node("Constant", [], ["plan.column"], value=infer),
            helper.make_node("Reshape", ["position_ids", "plan.column"], [QUERIES]),
        ]
        for given, node in zip(self._file.graph.node, self._graph.nodes, strict=True):
            new = self._call(given, node, caches) if given.domain == DOMAIN else given
            if node is self._graph.head:
                x = new.input[0]
                nodes.append(helper.make_node("Gather", [x, ROWS], [f"{x}.{ROWS}"], axis=1))
                new.input[0] = f"{x}.{ROWS}"
            nodes.append(new)
        return nodes

    def _call(self, given: onnx.NodeProto, node: Node, caches: set[str]) -> onnx.NodeProto:
        """The node that calls its function as rewritten."""
        body = self._bodies[given.op_type, given.overload]
        copies = [onnx.NodeProto.FromString(inner.SerializeToString()) for inner in body.node]
        inputs = dict(zip(body.input, given.input, strict=True))
        call = Call(self._graph, node, self._product, inputs, list(body.output), copies)
        rewrite(call, self._table, caches)
        self._arrays |= call.arrays
        overload = "_".join(filter(None, (given.overload, call.kind)))
        if (given.op_type, overload) not in self._functions:
            self._functions[given.op_type, overload] = made(
                given.op_type, overload, list(call.inputs), call.outputs, call.nodes, list(body.attribute)
            )
        new: onnx.NodeProto = onnx.NodeProto.FromString(given.SerializeToString())
        new.overload = overload
        del new.input[:]
        new.input.extend(call.inputs.values())
        return new

    def _values(self) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
        """Inputs and outputs, with their types and shapes."""
        sizes: dict[str, list[int | str | None]] = {
            "input_ids": [1, "T"], "position_ids": [1, "T"], WRITE: [1], KEYS: ["S"], ROWS: ["R"],
        }  # fmt: skip
        inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n, shape in sizes.items()]
        vocabulary = int(self._graph.metadata["vocab_size"])
        outputs = [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [1, "R", vocabulary])]
        for cache in caches_of(self._graph):
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(cache.dtype))
            shape = [1, *("S" if size is None else size for size in cache.shape)]
            inputs.append(helper.make_tensor_value_info(cache.past, kind, shape))
            outputs.append(helper.make_tensor_value_info(cache.present, kind, shape))
        return inputs, outputs


def _beside(name: str, array: np.ndarray) -> TensorProto:
    """An initializer whose content the session gets beside the model: the location is never opened."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    proto = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "beside"), ("offset", "0"), ("length", str(array.nbytes))):
        proto.external_data.add(key=key, value=value)
    return proto
