"""A tiny float graph whose MLPs are experts, of which calibration may reach only some."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flatlm.runtime.format.graph import Graph, Node, Tensor
from tests.test_passes import HIDDEN, float_graph

EXPERTS, KEPT, WIDE = 5, 2, 24
ROUTE = {"kind": "softmax", "normalize": 1}


def float_experts(seed: int = 0, unreached: int = 0, **route: object) -> Graph:
    """`float_graph` with experts in the place of each MLP; the last `unreached` of them no token chooses."""
    graph, rng = float_graph(seed), np.random.default_rng(seed)
    nodes: list[Node] = []
    for node in graph.nodes:
        at, _, part = node.name.rpartition(".")
        if not at.endswith(".mlp") or part == "norm":
            nodes.append(node)
        elif part == "gate_up":
            nodes += _experts(graph, at, node.inputs[0], rng, unreached, {**ROUTE, **route})
        elif part == "add":
            nodes.append(replace(node, inputs=(node.inputs[0], f"{at}.experts.sum")))
    used = {name for node in nodes for name in node.inputs}
    for name in [name for name in graph.constants if name not in used]:
        del graph.constants[name]
    return replace(graph, nodes=nodes)


def _experts(
    graph: Graph, at: str, normed: str, rng: np.random.Generator, unreached: int, route: dict[str, object]
) -> list[Node]:
    bias = np.where(np.arange(EXPERTS) < EXPERTS - unreached, 0, -1e4)
    shapes = {
        "router": (EXPERTS, HIDDEN),
        "gate_up": (EXPERTS, 2 * WIDE, HIDDEN),
        "down": (EXPERTS, HIDDEN, WIDE),
    }
    names = {part: f"{at}.experts.{part}" if part != "router" else f"{at}.router" for part in shapes}
    for part, shape in shapes.items():
        name, weight = names[part], rng.normal(size=shape) / np.sqrt(shape[-1])
        weight.reshape(-1)[weight.size // 2] *= 20
        shift = bias if part == "router" else rng.normal(size=shape[:-1]) / 9
        graph.constants[f"{name}.weight"] = Tensor.of(weight.astype(np.float32))
        graph.constants[f"{name}.bias"] = Tensor.of(shift.astype(np.float32))
    router, up, down = names.values()
    chosen = (f"{at}.route.choice", f"{at}.route.shares")
    attrs = {"experts": EXPERTS, "kept": KEPT, **route}
    act = f"{at}.experts.act"
    return [
        Node("Linear", (normed, f"{router}.weight", f"{router}.bias"), (router,), {}, router),
        Node("Route", (router,), chosen, attrs, f"{at}.route"),
        Node("Experts", (normed, f"{up}.weight", chosen[0], f"{up}.bias"), (up,), {}, up),
        Node("Gated", (up,), (act,), {"act": "silu"}, act),
        Node("Experts", (act, f"{down}.weight", chosen[0], f"{down}.bias"), (down,), {}, down),
        Node("ExpertSum", (down, *chosen), (f"{at}.experts.sum",), {}, f"{at}.experts.sum"),
    ]
