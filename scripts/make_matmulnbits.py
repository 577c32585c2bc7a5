"""Makes the ONNX file that onnxruntime is compared on: the same weights as MatMulNBits with int8 activations.

    python scripts/make_matmulnbits.py SRC OUT_FOLDER [--head-bits 4]

SRC is what `flatlm export` takes. The decoder is built here, of the operators that onnxruntime-genai's
builder uses on a CPU: MatMulNBits (blocks of 32, symmetric, rounded to nearest, accuracy_level 4), rotary
GroupQueryAttention on a K/V cache of fixed length, SimplifiedLayerNormalization. qkv and gate with up are one
product each. The logits are those of the last `rows` rows. Needs flatlm[export].
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from flatlm.export.archs import build_graph
from flatlm.export.sources import open_source
from flatlm.kernels_arm.reference import rotary_table
from flatlm.runtime.format.graph import Graph, Node

BLOCK = 32
CONTEXT = 4096
INPUTS = {
    "input_ids": (TensorProto.INT64, [1, "T"]),
    "rows": (TensorProto.INT64, [1]),
    "seqlens_k": (TensorProto.INT32, [1]),
    "total_sequence_length": (TensorProto.INT32, []),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--head-bits", type=int, default=4, choices=(4, 8), help="of the head (default 4)")
    args = parser.parse_args()
    if args.out.exists() and not (args.out / "peer.json").is_file():
        parser.error(f"{args.out} is there and was not made by this script: choose another folder")
    args.out.mkdir(parents=True, exist_ok=True)
    source = open_source(args.source, sys.stderr)
    for name, content in source.files.items():
        (args.out / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    with open(args.out / "model.onnx.data", "wb") as data:
        model, facts = _Writer(build_graph(source), data, args.head_bits).run()
    onnx.save(model, args.out / "model.onnx")
    (args.out / "peer.json").write_text(json.dumps(facts), encoding="utf-8")
    print(args.out)


def quantize(weights: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n, k] → blocks uint8 [n, k/32, 4 · bits], scales float32 [n, k/32]: symmetric, to nearest."""
    blocks = weights.reshape(len(weights), -1, BLOCK)
    middle = 1 << (bits - 1)
    at = np.abs(blocks).argmax(2, keepdims=True)
    scale = np.take_along_axis(blocks, at, 2) / -middle  # the largest takes the end that has one step more
    safe = np.where(scale == 0, 1, scale)
    levels = np.clip(np.rint(blocks / safe) + middle, 0, 2 * middle - 1).astype(np.uint8)
    packed = levels if bits == 8 else levels[..., ::2] | levels[..., 1::2] << 4
    return packed, scale[..., 0].astype(np.float32)


@dataclass
class _Writer:
    graph: Graph
    data: object
    head_bits: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    layers: int = 0
    heads: Node | None = None  # the last one

    def run(self) -> tuple[onnx.ModelProto, dict[str, int]]:
        for node in self.graph.nodes:
            getattr(self, f"_{node.op.lower()}")(node)
        assert self.heads is not None
        groups, size = (int(self.heads.attrs[name]) for name in ("kv_num_heads", "head_size"))
        shape = [1, groups, CONTEXT, size]
        past, present = ([(f"{kind}.{i}.{part}", (TensorProto.FLOAT, shape)) for i in range(self.layers)
                          for part in ("key", "value")] for kind in ("past", "present"))  # fmt: skip
        values = [helper.make_tensor_value_info(name, *kind) for name, kind in (*INPUTS.items(), *past)]
        vocab = int(self.graph.metadata["vocab_size"])
        outputs = [("logits", (TensorProto.FLOAT, [1, "rows", vocab])), *present]
        results = [helper.make_tensor_value_info(name, *kind) for name, kind in outputs]
        graph = helper.make_graph(self.nodes, "decoder", values, results, self.constants)
        domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        facts = {"layers": self.layers, "groups": groups, "size": size, "context": CONTEXT, "vocab": vocab,
                 "bytes": sum(self.sizes.values())}  # fmt: skip
        return helper.make_model(graph, opset_imports=domains, ir_version=10), facts

    def _constant(self, name: str, array: np.ndarray) -> str:
        """To the data file, once."""
        if name not in self.sizes:
            array = np.ascontiguousarray(array)
            self.data.write(bytes(-self.data.tell() % 64))  # type: ignore[attr-defined]
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            tensor = TensorProto(
                name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL
            )
            offset = self.data.tell()  # type: ignore[attr-defined]
            for key, value in (("location", "model.onnx.data"), ("offset", offset), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            self.data.write(array)  # type: ignore[attr-defined]
            self.constants.append(tensor)
            self.sizes[name] = array.nbytes
        return name

    def _emit(self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attrs) -> None:
        self.nodes.append(helper.make_node(op, inputs, outputs, outputs[0], domain=domain, **attrs))

    def _rotarytable(self, node: Node) -> None:
        tables = rotary_table(np.arange(CONTEXT), self.graph.array(node.inputs[1]))
        for name, table in zip(("cos", "sin"), tables, strict=True):
            self._constant(name, table.astype(np.float32))

    def _embedding(self, node: Node) -> None:
        table = self._constant("embedding.table", self.graph.array(node.inputs[1]).astype(np.float16))
        self._emit("Gather", [table, "input_ids"], ["embedding.half"])
        self._emit("Cast", ["embedding.half"], [node.outputs[0]], to=TensorProto.FLOAT)

    def _norm(self, node: Node) -> None:
        x, weight = node.inputs[0], self._constant(node.inputs[1], self.graph.array(node.inputs[1]))
        if "." not in node.name:  # the last one: only the rows whose logits are wanted
            for name, value in (("rows.end", np.iinfo(np.int64).max), ("rows.axis", 1)):
                self._constant(name, np.array([value], np.int64))
            self._emit("Neg", ["rows"], ["rows.first"])
            self._emit("Slice", [x, "rows.first", "rows.end", "rows.axis"], ["rows.hidden"])
            x = "rows.hidden"
        epsilon = float(node.attrs["epsilon"])
        self._emit("SimplifiedLayerNormalization", [x, weight], [node.outputs[0]], axis=-1, epsilon=epsilon)

    def _linear(self, node: Node) -> None:
        x, weight, bias = node.inputs
        bits = self.head_bits if node.outputs[0] == "logits" else 4
        (n, k), name, out = self.graph.constants[weight].shape, node.name, node.outputs[0]
        packed, scales = quantize(self.graph.array(weight), bits)
        inputs = [x, self._constant(f"{name}.blocks", packed), self._constant(f"{name}.scales", scales)]
        biases = self.graph.array(bias)
        result = f"{name}.product" if biases.any() else out
        self._emit(
            "MatMulNBits", inputs, [result], "com.microsoft", K=int(k), N=int(n), bits=bits,
            block_size=BLOCK, accuracy_level=4,
        )  # fmt: skip
        if biases.any():
            self._emit("Add", [result, self._constant(bias, biases)], [out])

    def _heads(self, node: Node) -> None:
        self.heads = node

    def _rotate(self, node: Node) -> None:
        """GroupQueryAttention does it."""

    def _append(self, node: Node) -> None:
        """And this."""

    def _attend(self, node: Node) -> None:
        assert self.heads is not None
        i, heads = self.layers, self.heads
        past, present = ([f"{kind}.{i}.{part}" for part in ("key", "value")] for kind in ("past", "present"))
        self._emit(
            "GroupQueryAttention",
            [heads.inputs[0], "", "", *past, "seqlens_k", "total_sequence_length", "cos", "sin"],
            [node.outputs[0], *present], "com.microsoft", num_heads=int(heads.attrs["num_heads"]),
            kv_num_heads=int(heads.attrs["kv_num_heads"]), scale=float(node.attrs["scale"]), do_rotary=1,
        )  # fmt: skip
        self.layers += 1

    def _gated(self, node: Node) -> None:
        assert node.attrs["act"] == "silu"
        gate, up, out = f"{node.name}.gate", f"{node.name}.up", node.outputs[0]
        self._emit("Split", [node.inputs[0]], [gate, up], axis=-1, num_outputs=2)
        self._emit("Sigmoid", [gate], [f"{gate}.sigmoid"])
        self._emit("Mul", [gate, f"{gate}.sigmoid"], [f"{gate}.silu"])
        self._emit("Mul", [f"{gate}.silu", up], [out])

    def _add(self, node: Node) -> None:
        self._emit("Add", list(node.inputs), [node.outputs[0]])


if __name__ == "__main__":
    main()
