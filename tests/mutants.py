"""Graphs that are nearly right: one or two random changes to a tiny one, of its structure or its numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from flatlm.runtime.format.graph import Graph, Node, Tensor
from tests.recurrent_graphs import MIXERS, recurrent_graph
from tests.tiny_graphs import quantized_graph

MODELS = [
    *((kv, activations) for activations in ("static", "token") for kv in ("float32", "int8")),
    ("float32", "token", "norms"),
    ("float32", "static", "qk_norm"),
    ("int8", "token", "qk_norm"),
    ("float32", "static", "window"),
    ("float32", "static", "gelu_tanh", "norms"),
    ("int8", "token", "gelu_tanh"),
    ("int8", "static", "window"),
    ("float32", "static", "plain", "relu2", "norms"),
    ("int8", "token", "head_gate"),
    ("float32", "static", "softcap", "slopes", "window", "logit_cap"),
    ("int8", "token", "softcap", "slopes", "sinks", "window"),
    ("float32", "token", "sinks", "no_rotation", "positions", "norms", "centered"),
    ("int8", "static", "qk_norm", "own", "centered", "no_rotation"),
    ("float32", "static", "qk_norm", "all", "norm_last", "plain", "xielu"),
]
MODELS += [("float32", "static", "conv"), ("int8", "token", "delta"), ("float32", "token", "gated")]
FLOATS = (float("nan"), float("inf"), -1.0, 0.0, 1e38, 0.5)


@cache
def model(kind: tuple[str, ...]) -> Graph:
    if kind[-1] in MIXERS:
        return recurrent_graph(kind[-1], 0, *kind[:-1])
    return quantized_graph(0, *kind)


def mutant(rng: np.random.Generator) -> tuple[Graph, str]:
    """A graph that shares its data with a good one, and what was changed."""
    kind = MODELS[rng.integers(len(MODELS))]
    good, told = model(kind), ["-".join(kind)]
    graph = replace(
        good,
        nodes=list(good.nodes),
        constants=dict(good.constants),
        inputs=list(good.inputs),
        outputs=list(good.outputs),
        metadata=dict(good.metadata),
    )
    told += [_pick(rng, CHANGES)(rng, graph) for _ in range(rng.integers(1, 3))]
    return graph, "; ".join(told)


def _pick(rng: np.random.Generator, items):
    items = list(items)
    return items[rng.integers(len(items))]


def _number(rng: np.random.Generator, graph: Graph, value: int) -> int:
    others = [v for node in graph.nodes for v in node.attrs.values() if isinstance(v, int)]
    return _pick(rng, [value + 1, value - 1, 2 * value, value // 2, 0, -5, 3000, 1 << 40, _pick(rng, others)])


def _attribute(rng: np.random.Generator, graph: Graph) -> str:
    at, node = _pick(rng, [(i, node) for i, node in enumerate(graph.nodes) if node.attrs])
    key, value = _pick(rng, node.attrs.items())
    new = _number(rng, graph, value) if isinstance(value, int) else _pick(rng, FLOATS)
    if isinstance(value, str):
        new = _pick(rng, ["float32", "int8", "silu", "gelu_tanh", "relu2", "", value])
    graph.nodes[at] = replace(node, attrs={**node.attrs, key: new})
    return f"{node.name}.{key} = {new}"


def _every_head(rng: np.random.Generator, graph: Graph) -> str:
    key, value = _pick(rng, [("num_heads", 4), ("kv_num_heads", 1), ("head_size", 2), ("head_size", 8)])
    for at, node in enumerate(graph.nodes):
        if key in node.attrs:
            graph.nodes[at] = replace(node, attrs={**node.attrs, key: value})
    return f"{key} = {value} everywhere"


def _rewire(rng: np.random.Generator, graph: Graph) -> str:
    """An input becomes another value, most often one that was computed earlier."""
    at = int(rng.integers(1, len(graph.nodes)))
    node = graph.nodes[at]
    which = int(rng.integers(len(node.inputs))) if rng.random() < 0.3 else 0
    earlier = [name for other in graph.nodes[:at] for name in other.outputs]
    name = _pick(rng, earlier if rng.random() < 0.8 else [*graph.constants, *graph.inputs, "nothing"])
    inputs = tuple(name if i == which else old for i, old in enumerate(node.inputs))
    graph.nodes[at] = replace(node, inputs=inputs)
    return f"{node.name} reads {name} as input {which}"


def _name(rng: np.random.Generator, graph: Graph) -> str:
    at, name = int(rng.integers(len(graph.nodes))), _pick(rng, ["", "x", *(n.name for n in graph.nodes)])
    graph.nodes[at] = replace(graph.nodes[at], name=name)
    return f"node {at} is named {name!r}"


def _remove(rng: np.random.Generator, graph: Graph) -> str:
    return f"without {graph.nodes.pop(int(rng.integers(len(graph.nodes)))).name}"


def _skip(rng: np.random.Generator, graph: Graph) -> str:
    """Without a node; what read it reads its first input."""
    node = graph.nodes.pop(int(rng.integers(len(graph.nodes))))
    for at, other in enumerate(graph.nodes):
        inputs = tuple(node.inputs[0] if name in node.outputs else name for name in other.inputs)
        graph.nodes[at] = replace(other, inputs=inputs)
    return f"past {node.name}"


def _swap(rng: np.random.Generator, graph: Graph) -> str:
    at = int(rng.integers(len(graph.nodes) - 1))
    graph.nodes[at : at + 2] = graph.nodes[at : at + 2][::-1]
    return f"{graph.nodes[at].name} before {graph.nodes[at + 1].name}"


def _insert(rng: np.random.Generator, graph: Graph) -> str:
    """A copy of a node, or a new sum or gate, between an earlier value and one of its readers."""
    at = int(rng.integers(2, len(graph.nodes)))
    earlier = [name for other in graph.nodes[:at] for name in other.outputs]
    source, second = _pick(rng, earlier), _pick(rng, earlier)
    copied = _pick(rng, graph.nodes)
    op = _pick(rng, ["Add", "Gated", copied.op])
    inputs = {"Add": (source, second), "Gated": (source,)}.get(op, (source, *copied.inputs[1:]))
    outputs = ("new", *(f"new.{i}" for i in range(1, len(copied.outputs) if op == copied.op else 1)))
    attrs = {"Gated": {"act": "silu"}}.get(op, {})
    node = Node(op, inputs, outputs, copied.attrs if op == copied.op else attrs, "new")
    graph.nodes.insert(at, node)
    later = [i for i in range(at + 1, len(graph.nodes)) if source in graph.nodes[i].inputs]
    for i in later[: int(rng.integers(0, 3))]:
        read = tuple("new" if name == source else name for name in graph.nodes[i].inputs)
        graph.nodes[i] = replace(graph.nodes[i], inputs=read)
    return f"{op}{inputs} at {at}"


def _shape(rng: np.random.Generator, graph: Graph) -> str:
    """A constant with other dimensions, its bytes cut or filled up to fit."""
    name, tensor = _pick(rng, graph.constants.items())
    shape = tuple(max(0, size + int(rng.integers(-1, 2)) * _pick(rng, [0, 1, 2])) for size in tensor.shape)
    elements = int(np.prod(shape)) // (2 if tensor.dtype == "uint4" else 1)
    flat = np.resize(tensor.data.reshape(-1), elements)
    data = flat if tensor.dtype == "uint4" else flat.reshape(shape)
    graph.constants[name] = Tensor(tensor.dtype, shape, data)
    return f"{name} {list(shape)}"


def _value(rng: np.random.Generator, graph: Graph) -> str:
    """One element of a constant."""
    name, tensor = _pick(rng, [(k, t) for k, t in graph.constants.items() if t.data.size])
    data = tensor.data.copy().reshape(-1)
    at = int(rng.integers(data.size))
    number = _pick(rng, FLOATS) if tensor.dtype == "float32" else int(rng.integers(256))
    data[at] = number if tensor.dtype == "float32" else np.uint8(number).view(data.dtype)
    graph.constants[name] = replace(tensor, data=data.reshape(tensor.data.shape))
    return f"{name}[{at}] = {number}"


def _outside(rng: np.random.Generator, graph: Graph) -> str:
    """The graph's own inputs, outputs and metadata."""
    if rng.random() < 0.4:
        key = _pick(rng, graph.metadata)
        graph.metadata[key] = _pick(rng, ["0", "-5", "x", "", "1" * 30, "54", "52", "10000", " 53", "٣"])
        return f"{key} is {graph.metadata[key]!r}"
    names = _pick(rng, [graph.inputs, graph.outputs])
    if rng.random() < 0.5:
        return f"no {names.pop(int(rng.integers(len(names))))} outside"
    names.append(_pick(rng, ["x", *graph.inputs, *graph.outputs]))
    return f"{names[-1]} outside, too"


CHANGES = (
    *(_attribute, _every_head, _rewire, _rewire, _rewire, _name, _remove, _skip),
    *(_swap, _insert, _insert, _insert, _shape, _value, _outside),
)
