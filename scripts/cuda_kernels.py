"""The operators that onnxruntime's CUDA provider has kernels for, asked of the provider itself.

python scripts/cuda_kernels.py          where onnxruntime-gpu starts; writes tests/cuda_kernels.json

For every operator of the plan's opset, and every choice of element types, a model of that one node is loaded
with the CPU forbidden. onnxruntime's page docs/OperatorKernels.md says the same of some commit, but ranges of
opsets in it do not tell which node a kernel takes. No GPU computes anything here: the table can be made
wherever the provider's library loads.

Keys are `Operator-VERSION`, VERSION the opset since which it is defined so; values are lists of element
types, one for each type parameter of the operator's schema, in the schema's order.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from flatlm.runtime.backends.onnx_plan.functions import MICROSOFT, OPSET
from flatlm.runtime.backends.ort_session import demand, failures, import_onnxruntime

TABLE = Path(__file__).parent.parent / "tests" / "cuda_kernels.json"
TYPES = ("float", "double", "int8", "uint8", "int32", "int64", "bool")
MOST = 600  # choices of types for one operator
ATTRIBUTES = {  # that a node must have
    "Concat": {"axis": 0},
    "Split": {"num_outputs": 2},
    "MatMulNBits": {"K": 32, "N": 16, "bits": 8, "block_size": 32},
}
# Of onnxruntime's own domain, what the plan uses or onnxruntime makes of it: element types of the inputs
OTHERS = {"MatMulNBits": ("float", "uint8", "float"), "FusedMatMul": ("double", "double")}


def main() -> int:
    ort = import_onnxruntime()
    demand(ort, "cuda")
    kernels: dict[str, list[list[str]]] = {}
    for schema in sorted(schemas(), key=lambda one: one.name):
        found = [list(choice) for choice in choices(schema) if runs(ort, schema, choice)]
        if found:
            kernels[f"{schema.name}-{schema.since_version}"] = found
    for name, types in OTHERS.items():
        if loads(ort, name, MICROSOFT, types, [types[0]], ATTRIBUTES.get(name, {})):
            kernels[f"{MICROSOFT}.{name}-1"] = [[*dict.fromkeys(types)]]
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(types)}" for name, types in kernels.items())
    head = f'"onnxruntime-gpu": "{ort.__version__}", "opset": {OPSET}'
    TABLE.write_text(f'{{{head}, "kernels": {{\n{lines}\n}}}}\n')
    print(f"{len(kernels)} operators in {TABLE}")
    return 0


def schemas() -> Iterator[onnx.defs.OpSchema]:
    """Of the standard domain, as they are in the plan's opset."""
    known = onnx.defs.get_all_schemas_with_history()
    for name in {one.name for one in known if one.domain == "" and one.since_version <= OPSET}:
        schema = onnx.defs.get_schema(name, OPSET, "")
        if not schema.deprecated:
            yield schema


def choices(schema: onnx.defs.OpSchema) -> Iterator[tuple[str, ...]]:
    """Element types for the schema's type parameters, in their order."""
    allowed = [
        [kind for kind in TYPES if f"tensor({kind})" in one.allowed_type_strs]
        for one in schema.type_constraints
    ]
    return itertools.islice(itertools.product(*allowed), MOST)


def runs(ort: Any, schema: onnx.defs.OpSchema, choice: tuple[str, ...]) -> bool:
    """Whether the provider takes a node with these element types; what is optional is left away."""
    kinds = {one.type_param_str: kind for one, kind in zip(schema.type_constraints, choice, strict=True)}
    attributes = dict(ATTRIBUTES.get(schema.name, {}))
    if schema.name == "Cast":
        attributes["to"] = getattr(TensorProto, choice[1].upper())
    if {name for name, one in schema.attributes.items() if one.required} - set(attributes):
        return False
    inputs, outputs = (
        [kinds.get(one.type_str, one.type_str) for one in values if one.option != one.option.Optional]
        for values in (schema.inputs, schema.outputs)
    )
    return loads(ort, schema.name, "", inputs, outputs, attributes)


def loads(
    ort: Any,
    name: str,
    domain: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    attributes: Mapping[str, Any],
) -> bool:
    """Whether a model of that node loads on CUDA alone, where its element types are some of `TYPES`."""
    kinds = [kind.removeprefix("tensor(").removesuffix(")") for kind in (*inputs, *outputs)]
    if not set(kinds) <= set(TYPES):
        return False
    values = [
        helper.make_tensor_value_info(f"value_{number}", getattr(TensorProto, kind.upper()), None)
        for number, kind in enumerate(kinds)
    ]
    names = [value.name for value in values]
    count = len(inputs)
    node = helper.make_node(name, names[:count], names[count:], domain=domain, **attributes)
    graph = helper.make_graph([node], "one", values[:count], values[count:])
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=11)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CUDAExecutionProvider"])
    except failures(ort):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
