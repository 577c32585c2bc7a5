"""What flattening costs an artifact: bytes, multiplications and measured time, by kind of layer and in all.

    python scripts/flattening_cost.py models/smollm2-edge -t 2 -r 9 -p 512 --json cost.json

The artifact runs beside copies of itself in the same process, in turns: without the second digit of its
wide channels, without its sparse excess, without either, and with a step for the tensor in the place of one
for each token. Copies compute something else, in the same shapes; only their time is of use. A number is
the median over the rounds of the difference within a round. The machine must be idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from flatlm.kernels_arm import layout
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.format.functions import LINEAR, LINEARS, TOKEN_LINEAR
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.nested import is_low, layer_of
from flatlm.runtime.measuring import per_op
from flatlm.runtime.measuring.bench import markdown
from flatlm.runtime.ops import named

KINDS = ("qkv", "out", "gate_up", "down", "head")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--rounds", type=int, default=9)
    parser.add_argument("-p", type=int, default=512, help="tokens of the prompt that is timed")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    artifact = open_artifact(args.artifact)
    print(sizes_table(sizes(artifact.graph)))
    graphs = {
        "as it is": artifact.graph,
        "without second digits": changed(artifact.graph, narrow),
        "without excess": changed(artifact.graph, dense),
        "without both": changed(artifact.graph, lambda graph, node: dense(graph, narrow(graph, node))),
    }
    if any(node.op == TOKEN_LINEAR for node in artifact.graph.nodes):
        graphs["a step for the tensor"] = changed(artifact.graph, static)
    backends = {
        name: NativeBackend(SimpleNamespace(graph=graph), threads=args.threads, context=args.p + 64)
        for name, graph in graphs.items()
    }
    result: dict[str, Any] = {"sizes": sizes(artifact.graph)}
    for tokens in (1, args.p):
        rounds = [
            {name: timed(backend, tokens) for name, backend in backends.items()} for _ in range(args.rounds)
        ]
        result[f"{tokens} tokens"] = rounds
        print(
            f"\n{tokens} token{'s' if tokens > 1 else ''}, ms, {args.threads} threads, {args.rounds} rounds\n"
        )
        print(times_table(rounds))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------ copies
def changed(graph: Graph, change) -> Graph:
    """A graph of the same weights whose linear nodes went through `change`; new constants are its own."""
    copy = Graph([], dict(graph.constants), graph.inputs, graph.outputs, graph.metadata)
    copy.nodes += [change(copy, node) if node.op in LINEARS else node for node in graph.nodes]
    return copy


def narrow(graph: Graph, node: Node) -> Node:
    """One piece for every channel."""
    columns, levels = int(node.attrs["columns"]), int(node.attrs["levels"])
    return _with(graph, node, {"limit": np.full(columns, levels, np.float32)})


def dense(graph: Graph, node: Node) -> Node:
    return _with(graph, node, {"excess_delta": np.zeros(0, np.uint8), "excess_value": np.zeros(0, np.int8)})


def static(graph: Graph, node: Node) -> Node:
    if node.op != TOKEN_LINEAR:
        return node
    roles = named(node)
    name = f"{layer_of(node.name)}.inverse_scale"
    graph.constants[name] = Tensor.of(np.array(20, np.float32))
    front = [roles[role] for role in ("x", "weight", "scale", "bias")]
    return replace(node, op=LINEAR, inputs=(*front, name, *node.inputs[4:]))


def _with(graph: Graph, node: Node, arrays: dict[str, np.ndarray]) -> Node:
    own = {role: f"{node.name}.{role}.other" for role in arrays}
    if "limit" in own:
        own["limit"] = f"{layer_of(node.name)}.limit.other"  # planes of one layer stay readers of one input
    graph.constants.update({own[role]: Tensor.of(array) for role, array in arrays.items()})
    return replace(node, inputs=tuple(own.get(role, name) for role, name in named(node).items()))


# ------------------------------------------------------------------------------------------ measurements
def kind_of(name: str) -> str:
    return next((kind for kind in KINDS if layer_of(name).endswith(kind)), "other")


def timed(backend: NativeBackend, tokens: int) -> dict[str, float]:
    """Seconds of one step: of the products of each kind, of quantization, of everything."""
    found = dict.fromkeys(("all", "quantize", *KINDS), 0.0)
    for op in per_op.measure(backend, tokens):
        found["all"] += op.seconds
        what, _, where = op.name.partition(" ")
        if what == "product":
            found[kind_of(where)] += op.seconds
        elif what == "quantize":
            found["quantize"] += op.seconds
    return found


def sizes(graph: Graph) -> dict[str, dict[str, float]]:
    """By kind of layer: weights, bytes of them packed, of excess and of flattening's tables, extra work."""
    found: dict[str, dict[str, float]] = {}
    for node in (node for node in graph.nodes if node.op in LINEARS):
        roles = named(node)
        row = found.setdefault(
            kind_of(node.name),
            dict.fromkeys(("weights", "packed", "excess", "tables", "double", "columns"), 0.0),
        )
        rows, columns = int(node.attrs["rows"]), int(node.attrs["columns"])
        size = {
            role: graph.constants[name].data.nbytes for role, name in roles.items() if name in graph.constants
        }
        row["packed"] += size["weight"]
        row["excess"] += size["excess_delta"] + size["excess_value"]
        if is_low(node):
            continue
        row["weights"] += rows * columns
        row["tables"] += size["limit"]
        row["double"] += 4 * rows * len(layout.wide_groups(graph.array(roles["limit"])))
        row["columns"] += rows * int((graph.array(roles["limit"]) > 127).sum())
    found["all"] = {key: sum(row[key] for row in found.values()) for key in next(iter(found.values()))}
    return found


def sizes_table(found: dict[str, dict[str, float]]) -> str:
    head = [
        "layer",
        "weights, M",
        "packed, MB",
        "excess, MB",
        "tables, MB",
        "run twice",
        "columns in onnxruntime",
    ]
    rows = []
    for kind, row in found.items():
        sizes = [f"{row[part] / 1e6:.2f}" for part in ("weights", "packed", "excess", "tables")]
        shares = [row[part] / row["weights"] for part in ("double", "columns")]
        rows.append([kind, *sizes, f"{100 * shares[0]:.1f} %", f"+{100 * shares[1]:.1f} %"])
    return markdown(head, rows, left=1)


def times_table(rounds: list[dict[str, dict[str, float]]]) -> str:
    names, parts = list(rounds[0]), list(rounds[0]["as it is"])
    rows = []
    for name in names:
        cells = []
        for part in parts:
            own = statistics.median(r["as it is"][part] for r in rounds)
            less = statistics.median(r[name][part] - r["as it is"][part] for r in rounds)
            cells.append(f"{1e3 * own:.3f}" if name == "as it is" else f"{1e3 * less:+.3f}")
        rows.append([name, *cells])
    return markdown(["", *parts], rows, left=1)


if __name__ == "__main__":
    main()
