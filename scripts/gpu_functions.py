"""Each function of a plan on a device beside the CPU, and where the device's nodes run; for gpu_parity.py."""

from __future__ import annotations

import collections
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from flatlm.runtime.backends import ort_session as sessions
from flatlm.runtime.backends.onnx_plan.exact import KEYS, WRITE
from flatlm.runtime.backends.onnx_plan.model import ROWS, Plan, plan_of
from flatlm.runtime.format.artifact import Artifact
from flatlm.runtime.format.widths import caches_of

TOKENS, PLACES = 16, 256


def functions(artifact: Artifact, form: str, device: str) -> dict[str, dict[str, Any]]:
    """Of every function of the plan, called with what a prompt makes of its inputs: whether all bits of the
    device's outputs are the CPU's, else the share that is and the largest distance, in numbers of float32.
    """
    plan = plan_of(artifact.path, artifact.graph, form)
    values = _values(plan, _feeds(artifact))
    found = {}
    calls = {(node.op_type, node.overload): node for node in plan.model.graph.node if node.domain}
    for (op, overload), node in calls.items():
        single = _single(plan, node, values)
        given = {name: values[name] for name in _computed(plan, node)}
        cpu, there = (_session(single, one).run(None, given) for one in ("cpu", device))
        found[" ".join(filter(None, (op, overload)))] = compared(cpu, there) | {"node": node.name}
    return found


def placement(artifact: Artifact, form: str, device: str) -> dict[str, Any]:
    """Nodes of a step of one token by where they ran; `elsewhere`: off the device, and no size."""
    plan = plan_of(artifact.path, artifact.graph, form)
    with tempfile.TemporaryDirectory() as folder:
        session = _session(plan, device, f"{folder}/profile")
        session.run(None, _feeds(artifact, 1))
        events = json.loads(Path(session.end_profiling()).read_text())
    ran: collections.Counter[tuple[str, str]] = collections.Counter()
    sizes: collections.Counter[tuple[str, str]] = collections.Counter()
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        about = event["args"]
        key = about.get("provider", "?").removesuffix("ExecutionProvider"), about["op_name"]
        kinds = {kind for one in about.get("output_type_shape", []) for kind in one}
        (sizes if kinds == {"int64"} and key[0] == "CPU" and device != "cpu" else ran)[key] += 1
    mine = device.upper()
    return {
        "nodes": {op: count for (provider, op), count in ran.most_common() if provider == mine},
        "total": sum(count for (provider, _), count in ran.items() if provider == mine),
        "sizes_on_host": sum(sizes.values()),
        "elsewhere": {op: count for (provider, op), count in ran.items() if provider != mine},
        "copies": sum(count for (_, op), count in ran.items() if op.startswith("Memcpy")),
        "branches": sum(count for (_, op), count in ran.items() if op in ("If", "Loop", "Scan")),
    }


def _feeds(artifact: Artifact, tokens: int = TOKENS) -> dict[str, np.ndarray]:
    """Inputs of the plan for the first tokens of a sequence."""
    ids = np.arange(1, tokens + 1)[None] % int(artifact.graph.metadata["vocab_size"])
    places = {"input_ids": ids, "position_ids": np.arange(tokens)[None], WRITE: np.zeros(1, np.int64)}
    places |= {KEYS: np.arange(PLACES), ROWS: np.arange(tokens)}
    for cache in caches_of(artifact.graph):
        shape = (1, *(PLACES if size is None else size for size in cache.shape))
        places[cache.past] = np.zeros(shape, cache.dtype)
    return places


def _values(plan: Plan, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All values between the functions, computed on the CPU."""
    model = onnx.ModelProto.FromString(plan.model.SerializeToString())
    known = {one.name for one in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = _session(replace(plan, model=model), "cpu")
    made = session.run(None, feeds)
    return feeds | dict(zip((one.name for one in session.get_outputs()), made, strict=True))


def _computed(plan: Plan, node: onnx.NodeProto) -> list[str]:
    """Inputs of a node that are no constants."""
    constants = {one.name for one in plan.model.graph.initializer}
    return [name for name in dict.fromkeys(node.input) if name not in constants]


def _single(plan: Plan, node: onnx.NodeProto, values: dict[str, np.ndarray]) -> Plan:
    """The plan of that node alone."""

    def described(names: list[str]) -> list[onnx.ValueInfoProto]:
        kinds = {name: helper.np_dtype_to_tensor_dtype(values[name].dtype) for name in names}
        return [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]

    model = plan.model
    constants = [one for one in model.graph.initializer if one.name in node.input]
    inputs, outputs = described(_computed(plan, node)), described(list(node.output))
    single = helper.make_model(
        helper.make_graph([node], "one", inputs, outputs, constants),
        functions=[
            one for one in model.functions if (one.name, one.overload) == (node.op_type, node.overload)
        ],
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    arrays = {name: array for name, array in plan.arrays.items() if name in node.input}
    return replace(plan, model=single, arrays=arrays)


def _session(plan: Plan, device: str, profile: str = "") -> Any:
    ort = sessions.import_onnxruntime()
    options = sessions.session_options(ort, None)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    plan.hand_over(ort, options)
    return sessions.open_session(ort, plan.model.SerializeToString(), options, device)


def compared(cpu: list[np.ndarray], there: list[np.ndarray]) -> dict[str, Any]:
    equal = [np.mean(a.view(np.uint8) == b.view(np.uint8)) == 1 for a, b in zip(cpu, there, strict=True)]
    if all(equal):
        return {"equal": True}
    shares, ulps = [], []
    for a, b in zip(cpu, there, strict=True):
        shares.append(float(np.mean(a == b)))
        ulps.append(_ulps(a, b) if a.dtype == np.float32 else float(np.abs(a.astype(int) - b).max()))
    return {"equal": False, "equal_share": min(shares), "largest_ulp": max(ulps)}


def _ulps(a: np.ndarray, b: np.ndarray) -> float:
    """The largest distance of float32 numbers, counted in float32 numbers."""
    ordered = [
        np.where(x < 0, -(x & 0x7FFFFFFF), x) for x in (v.view(np.int32).astype(np.int64) for v in (a, b))
    ]
    return float(np.abs(ordered[0] - ordered[1]).max(initial=0))
