"""What each value of a graph is: a kind and a width, from the node that computes it to those that read it.

`functions.check_graph` looks at each node by itself. A kernel writes as many columns as its own node says and
the next one reads as many as its node says: only if both mean the same does no kernel leave its buffers. So
every value gets a kind and a width here, and every reader must want what it is given. With that go the rules
that concern a graph as a whole: names, metadata, caches, finite numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from flatlm.kernels_arm import layout
from flatlm.runtime.errors import FormatError
from flatlm.runtime.format.functions import ATTENTIONS, FUNCTIONS, LINEARS, cache_types, label, named
from flatlm.runtime.format.graph import Graph, Node, Tensor

IDS, POSITIONS, LOGITS = "input_ids", "position_ids", "logits"
EMBEDDINGS, HEADS = ("FlatEmbedding", "Embedding"), (*LINEARS, "Linear")

# What the runtime reads of the metadata, and the most that can be meant
NUMBERS = {"vocab_size": 1 << 28, "context_length": 1 << 24}

MOST = 1e9  # of a scale, bias, norm weight or frequency: beyond it float32 activations overflow
MOST_SCALE = 1e4  # of attention: 1 / sqrt(head_size) is below one

ADVICE = "the file is damaged or made by something else: copy or export it again"


@dataclass(frozen=True, slots=True)
class Value:
    """`size`: columns of a stream or a table; heads and columns of a cache, whose kind says its type."""

    kind: str
    size: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} of {' × '.join(map(str, self.size))}" if self.size else self.kind


UNKNOWN_CACHE = Value("a cache that no node has")  # an input of the graph, until an attention takes it

Rule = Callable[[Graph, Node, "tuple[Value, ...]"], "tuple[tuple[Value, ...], tuple[Value, ...]]"]


def check_values(graph: Graph) -> None:
    """FormatError, naming node and value, unless every value is what its readers take it for.

    `graph` has passed `functions.check_graph`.
    """
    numbers = {key: _number(graph, key) for key in NUMBERS}
    _check_names(graph)
    if not any(node.op in ATTENTIONS for node in graph.nodes):
        raise FormatError(f"the graph has no attention; {ADVICE}")
    values = _values(graph)
    _check_layers(graph)
    _check_readers(graph, values)
    _check_vocabulary(graph, numbers["vocab_size"])
    checked: set[str] = set()
    for node in graph.nodes:
        _check_floats(graph, node, checked)


def _number(graph: Graph, key: str) -> int:
    text = graph.metadata.get(key, "")
    if not re.fullmatch("[0-9]{1,18}", text, re.ASCII) or not 1 <= int(text) <= NUMBERS[key]:
        raise FormatError(
            f"the metadata's {key} is {text!r}, not a whole number of 1 … {NUMBERS[key]}; {ADVICE}"
        )
    return int(text)


def _check_names(graph: Graph) -> None:
    """Backends keep products and caches by the name of their node, and feed values by theirs."""
    for what, names in {
        "node": [node.name for node in graph.nodes],
        "graph input": graph.inputs,
        "graph output": graph.outputs,
    }.items():
        seen: set[str] = set()
        for name in names:
            if not name or name in seen:
                problem = f"two are named {name!r}" if name else "one has no name"
                raise FormatError(f"every {what} needs a name of its own, {problem}; {ADVICE}")
            seen.add(name)
    for name in graph.inputs:
        if name in graph.constants:
            raise FormatError(f"{name!r} is a constant and a graph input; {ADVICE}")


# ---- one rule per function: what it takes for its computed inputs, and what it makes
def _stream(*columns: int) -> tuple[Value, ...]:
    return tuple(Value("a stream", (size,)) for size in columns)


def _size(node: Node, *names: str) -> list[int]:
    return [int(node.attrs[name]) for name in names]


def _rotary(graph: Graph, node: Node, given: tuple[Value, ...]):
    table = Value("a rotary table", graph.constants[named(node)["inverse_frequency"]].shape)
    return (Value("positions"),), (table, table)


def _embedding(graph: Graph, node: Node, given: tuple[Value, ...]):
    return (Value("token ids"),), _stream(_matrix(graph, node)[1])


def _norm(graph: Graph, node: Node, given: tuple[Value, ...]):
    both = _stream(*graph.constants[named(node)["weight"]].shape)
    return both, both


def _linear(graph: Graph, node: Node, given: tuple[Value, ...]):
    rows, columns = _matrix(graph, node)
    return _stream(columns), _stream(rows)


def _swiglu(graph: Graph, node: Node, given: tuple[Value, ...]):
    half = sum(given[0].size[:1]) // 2
    return _stream(2 * half), _stream(half)


def _add(graph: Graph, node: Node, given: tuple[Value, ...]):
    if node.inputs[0] == node.inputs[1]:
        raise _misfit(node, f"it adds {node.inputs[0]!r} to itself")
    stream = _stream(sum(given[0].size[:1]))
    return (*stream, *stream), stream


def _attention(graph: Graph, node: Node, given: tuple[Value, ...]):
    heads, groups, size = _size(node, "num_heads", "kv_num_heads", "head_size")
    table = Value("a rotary table", (size // 2,))
    caches = [(f"cache in {dtype}", (groups, columns)) for _, dtype, columns in cache_types(node)]
    taken = (
        *_stream((heads + 2 * groups) * size),
        table,
        table,
        *(Value(f"a {kind}", shape) for kind, shape in caches),
    )
    return taken, (*_stream(heads * size), *(Value(f"a new {kind}", shape) for kind, shape in caches))


RULES: Mapping[str, Rule] = {
    "RotaryTable": _rotary,
    **dict.fromkeys(EMBEDDINGS, _embedding),
    "Norm": _norm,
    **dict.fromkeys(HEADS, _linear),
    **dict.fromkeys(ATTENTIONS, _attention),
    "SwiGLU": _swiglu,
    "Add": _add,
}


def _matrix(graph: Graph, node: Node) -> tuple[int, int]:
    """Rows and columns of a product or an embedding, packed or float."""
    if "rows" in node.attrs:
        return int(node.attrs["rows"]), int(node.attrs["columns"])
    rows, columns = graph.constants[named(node)["weight"]].shape
    return rows, columns


def _misfit(node: Node, problem: str) -> FormatError:
    return FormatError(f"{label(node)}: {problem}; {ADVICE}")


# ---- the pass
def _values(graph: Graph) -> dict[str, Value]:
    """Every value's kind and width. The graph's inputs beside ids and positions are caches."""
    values = {IDS: Value("token ids"), POSITIONS: Value("positions")}
    caches = set(graph.inputs) - set(values)
    missing = sorted(set(values) - set(graph.inputs))
    if missing:
        raise FormatError(f"the graph has no input {missing[0]!r}; {ADVICE}")
    for node in graph.nodes:
        roles = [role for role, expected in FUNCTIONS[node.op].inputs.items() if expected is None]
        inputs = named(node)
        names = [inputs[role] for role in roles]
        given = tuple(values.get(name, UNKNOWN_CACHE) for name in names)
        taken, made = RULES[node.op](graph, node, given)
        for role, name, found, wanted in zip(roles, names, given, taken, strict=True):
            if name in caches and wanted.kind.startswith("a cache"):
                caches.remove(name)
                values[name] = Value("the cache of another node")
            elif found != wanted:
                found = values.get(name, found)
                raise _misfit(node, f"{role} {name!r} is {found}, the node reads {wanted}")
        values.update(zip(node.outputs, made, strict=True))
    if caches:
        raise FormatError(f"no node reads the graph input {min(caches)!r}; {ADVICE}")
    return values


def _check_readers(graph: Graph, values: Mapping[str, Value]) -> None:
    """Logits and caches leave the graph, from the last node and the attentions; all else is read in it."""
    last, users = graph.nodes[-1], graph.users()
    if last.op not in HEADS or last.outputs != (LOGITS,):
        raise _misfit(last, f"the last node must be a product that computes {LOGITS!r}")
    for node in graph.nodes:
        for name in node.outputs:
            leaves = name == LOGITS or values[name].kind.startswith("a new ")
            if leaves != (name in graph.outputs):
                raise _misfit(node, f"{name!r} must{'' if leaves else ' not'} be an output of the graph")
            if leaves and name in users:
                raise _misfit(users[name][0], f"it reads {name!r}, which leaves the graph")
            if not leaves and name not in users:
                raise _misfit(node, f"no node reads {name!r}")
        if node.op in ATTENTIONS and len(users[node.inputs[0]]) > 1:  # it is rotated in place
            raise _misfit(node, f"qkv {node.inputs[0]!r} has another reader")


def _check_layers(graph: Graph) -> None:
    """One cache serves all layers, so they have one shape."""
    layers = [node for node in graph.nodes if node.op in ATTENTIONS]
    first = (layers[0].op, *_size(layers[0], "kv_num_heads", "head_size"))
    for node in layers:
        if (node.op, *_size(node, "kv_num_heads", "head_size")) != first:
            raise _misfit(node, f"its cache is not that of {layers[0].name!r}: {first[0]}, {first[1:]}")


def _check_vocabulary(graph: Graph, vocabulary: int) -> None:
    for node in graph.nodes:
        if node.op in EMBEDDINGS or node is graph.nodes[-1]:
            rows = _matrix(graph, node)[0]
            if rows != vocabulary:
                raise _misfit(node, f"{rows} rows, the metadata's vocab_size is {vocabulary}")
        if node.op == "FlatEmbedding":
            _check_padding(graph, node)


def _check_padding(graph: Graph, node: Node) -> None:
    """An embedding's rows are read with their padding, which norms then sum up. Nothing else reads any."""
    rows, columns = _matrix(graph, node)
    true, width = columns % layout.COLUMNS, layout.padded(columns, layout.COLUMNS)
    if not true:  # as in nearly all models: no weight is looked at
        return
    roles, bits = named(node), graph.bits(named(node)["weight"])
    steps = graph.array(roles["weight"]).view(np.uint8).reshape(-1, width * bits // 32, layout.STEP)
    last = np.ascontiguousarray(steps[:, -layout.COLUMNS * bits // 32 :])
    position = np.cumsum(graph.array(roles["excess_delta"]), dtype=np.int64)
    total = graph.array(roles["excess_value"])
    beyond = (position % width >= columns) & ((total < layout.INT4_LOW) | (total > layout.INT4_HIGH))
    if layout.unpack(last, rows, layout.COLUMNS, bits)[:, true:].any() or beyond.any():
        raise _misfit(node, f"the padding of {roles['weight']!r} beyond {columns} columns is not zeros")


def _check_floats(graph: Graph, node: Node, checked: set[str]) -> None:
    """Attributes and constants but for the matrices of float graphs. `checked` grows."""
    epsilon, scale = node.attrs.get("epsilon", 1.0), node.attrs.get("scale", 1.0)
    if not 0 < float(epsilon) <= 1:  # of 0, a row of zeros would be divided by zero
        raise _misfit(node, f"epsilon is {epsilon}, not a small number above 0")
    if not 0 < float(scale) <= MOST_SCALE:
        raise _misfit(node, f"scale is {scale}, not a number above 0 and up to {MOST_SCALE:g}")
    for role, expected in FUNCTIONS[node.op].inputs.items():
        if expected is None or expected.dtype != "float32" or len(expected.shape) > 1:
            continue
        name = named(node)[role]
        if name not in checked:
            checked.add(name)
            _check_numbers(node, role, name, graph.constants[name])


def _check_numbers(node: Node, role: str, name: str, tensor: Tensor) -> None:
    if not tensor.data.size:
        raise _misfit(node, f"{role} {name!r} is empty")
    low, high = float(tensor.data.min()), float(tensor.data.max())  # NaN if one is NaN
    if role == "inverse_scale":
        if not 0 < low <= high < np.inf:
            raise _misfit(node, f"{role} {name!r} is {low}, not a finite number above 0")
    elif not (low >= -MOST and high <= MOST):
        raise _misfit(node, f"{role} {name!r} has {low} … {high}, not finite numbers within ±{MOST:g}")
