"""What of a plan would run on CUDA: nodes with their element types, what stays on the host, what is copied.

onnxruntime optimizes the plan on the CPU, at the level that all devices share. Every value is then the
device's but sizes: what is made of Shape alone, int64, it leaves on the host, where Reshape, Range and
others read it. A size that a node reads otherwise is a copy in every step (a Memcpy node): no graph can be
captured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

from flatlm.runtime.backends.onnx_plan.model import Plan
from flatlm.runtime.backends.ort_session import session_options

KERNELS = json.loads((Path(__file__).parent / "cuda_kernels.json").read_text())["kernels"]
ON_HOST = {  # which inputs an operator reads on the host
    "Reshape": {1}, "Expand": {1}, "Slice": {1, 2, 3, 4}, "Pad": {1, 3}, "Range": {0, 1, 2}, "Unsqueeze": {1},
    "Squeeze": {1}, "Split": {1}, "ReduceSum": {1}, "ReduceMax": {1}, "ConstantOfShape": {0}, "TopK": {1},
    "CumSum": {1},
}  # fmt: skip
OF_SIZES = {"Concat", "Squeeze", "Unsqueeze", "Sub", "Add", "Mul", "Div", "Mod", "Gather", "Slice"}
NO_KERNEL = {
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Flatten",
    "Shape",
    "Constant",
}  # no work of a GPU


@dataclass(frozen=True)
class Placed:
    """A plan's nodes: `device` with a signature each, `host`, and the values that would be copied."""

    device: list[tuple[onnx.NodeProto, str]]
    host: list[onnx.NodeProto]
    copies: list[str]

    @property
    def kernels(self) -> int:
        """Nodes that launch something."""
        return sum(node.op_type not in NO_KERNEL for node, _ in self.device)

    def without_kernel(self) -> list[str]:
        """Signatures of which the table has no kernel."""
        return sorted({signature for _, signature in self.device if not known(signature)})


def placed(plan: Plan, folder: Path) -> Placed:
    """The nodes of a plan, as onnxruntime has optimized them."""
    options = session_options(onnxruntime, 1)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    plan.hand_over(onnxruntime, options)
    onnxruntime.InferenceSession(plan.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return _placed(onnx.load(str(folder / "optimized.onnx"), load_external_data=False))


def _placed(model: onnx.ModelProto) -> Placed:
    graph = model.graph
    opsets = {one.domain: one.version for one in model.opset_import}
    types = {one.name: _name(one.type.tensor_type.elem_type) for one in graph.input}
    types |= {one.name: _name(one.data_type) for one in graph.initializer}
    constants, sizes = {one.name for one in graph.initializer}, set()
    found = Placed([], [], [])
    for node in graph.node:
        signature = _signature(node, opsets[node.domain], types)
        computed = {name for name in node.input if name and name not in constants}
        if node.op_type == "Constant":
            constants |= set(node.output)
        elif node.op_type == "Shape" or (node.op_type in OF_SIZES and computed and computed <= sizes):
            sizes |= set(node.output)
            found.host.append(node)
        else:
            for number, name in enumerate(node.input):
                if name in computed and (name in sizes) != (number in ON_HOST.get(node.op_type, ())):
                    found.copies.append(f"{name} → {node.op_type}")
            found.device.append((node, signature))
    return found


def _signature(node: onnx.NodeProto, opset: int, types: dict[str, str]) -> str:
    """`MatMulInteger-10 int8 int8 int32`, as in the table: operator, the opset since which it is so, its
    element types. `types` get those of its outputs.
    """
    given = [types[name] for name in node.input if name]
    if node.domain:  # all that the plan uses give what their first input is
        types |= dict.fromkeys(node.output, given[0])
        return f"{node.domain}.{node.op_type}-1 " + " ".join(dict.fromkeys(given))
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    formal = [schema.inputs[min(i, len(schema.inputs) - 1)] for i, name in enumerate(node.input) if name]
    kinds = {one.type_str: kind for one, kind in zip(formal, given, strict=True)}
    for one in schema.type_constraints:
        if one.type_param_str not in kinds and len(one.allowed_type_strs) == 1:
            kinds[one.type_param_str] = _plain(one.allowed_type_strs[0])
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    if node.op_type == "Cast":
        kinds["T2"] = _name(attributes["to"])
    if node.op_type == "Constant":
        kinds["T"] = "int64" if "value_ints" in attributes else _name(attributes["value"].data_type)
    for number, name in enumerate(node.output):
        wanted = schema.outputs[min(number, len(schema.outputs) - 1)].type_str
        types[name] = kinds.get(wanted) or _plain(wanted)
    parameters = [kinds.get(one.type_param_str, "any") for one in schema.type_constraints]
    return f"{node.op_type}-{schema.since_version} " + " ".join(parameters)


def _name(number: int) -> str:
    return str(onnx.TensorProto.DataType.Name(number).lower())


def _plain(text: str) -> str:
    """int64 of tensor(int64)."""
    return text.removeprefix("tensor(").removesuffix(")")


def known(signature: str) -> bool:
    """Whether the table has it."""
    name, *kinds = signature.split()
    return any(
        all(kind in ("any", one) for kind, one in zip(kinds, choice, strict=True))
        for choice in KERNELS.get(name, [])
    )
