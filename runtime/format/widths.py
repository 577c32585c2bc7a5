"""What each value of a graph is: a kind and a width, from the node that computes it to those that read it.

`functions.check_graph` looks at each node by itself. A kernel writes as many columns as its own node says and
the next one reads as many as its node says: only if both mean the same does no kernel leave its buffers. So
every value gets a kind and a width here, from its node's module in runtime/ops, and every reader must want
what it is given. With that go the rules that concern a graph as a whole: names, metadata, caches, finite
numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flatlm.runtime import ops
from flatlm.runtime.errors import FormatError
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.signature import ADVICE, disagreement
from flatlm.runtime.format.values import (
    IDS,
    NEW_CACHE,
    NEW_STATE,
    POSITIONS,
    UNKNOWN_CACHE,
    Value,
    is_past,
    is_present,
)
from flatlm.runtime.ops.packed import sizes

LOGITS = "logits"
POSITION_IDS = "position_ids"
INPUTS = {"input_ids": IDS, POSITION_IDS: POSITIONS}  # of a graph, beside caches

# What the runtime reads of the metadata, and the most that can be meant
NUMBERS = {"vocab_size": 1 << 28, "context_length": 1 << 24}

MOST = 1e9  # of a scale, bias, norm weight or frequency: beyond it float32 activations overflow
MOST_SCALE = 1e4  # of attention: 1 / sqrt(head_size) is below one


@dataclass(frozen=True, slots=True)
class Cache:
    """A part of what a sequence leaves to its next step, outside the graph: `dtype` [B, *shape].

    Of a K/V cache that is [B, heads, positions, columns], where None stands for the positions.
    """

    past: str  # the graph's input
    present: str  # its output, with the new positions
    dtype: str
    shape: tuple[int | None, ...]

    @property
    def grows(self) -> bool:
        """Whether it has an axis of positions."""
        return None in self.shape


def check_values(graph: Graph) -> None:
    """FormatError, naming node and value, unless every value is what its readers take it for.

    `graph` has passed `functions.check_graph`.
    """
    numbers = {key: _number(graph, key) for key in NUMBERS}
    _check_names(graph)
    if not any(ops.has_state(node) for node in graph.nodes):
        raise FormatError(f"the graph has no attention; {ADVICE}")
    values = values_of(graph)
    _check_readers(graph, values)
    _check_vocabulary(graph, numbers["vocab_size"], numbers["context_length"])
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


def values_of(graph: Graph) -> dict[str, Value]:
    """Every value's kind and width. FormatError, naming node and value, where a reader wants another."""
    values = dict(INPUTS)
    caches = set(graph.inputs) - set(values)
    missing = sorted(set(values) - set(graph.inputs))
    if missing:
        raise FormatError(f"the graph has no input {missing[0]!r}; {ADVICE}")
    for node in graph.nodes:
        roles, names = ops.signature(node).computed, ops.computed(node)
        given = tuple(values.get(name, UNKNOWN_CACHE) for name in names)
        taken, made = ops.of(node).values(graph, node, given)
        for role, name, found, wanted in zip(roles, names, given, taken, strict=True):
            if name in caches and is_past(wanted):
                caches.remove(name)
                values[name] = Value("the cache of another node")
            elif found != wanted:
                found = values.get(name, found)
                raise disagreement(node, f"{role} {name!r} is {found}, the node reads {wanted}")
        values.update(zip(node.outputs, made, strict=True))
    if caches:
        raise FormatError(f"no node reads the graph input {min(caches)!r}; {ADVICE}")
    return values


def caches_of(graph: Graph) -> list[Cache]:
    """Of all layers, in the order of the nodes and of their inputs. Looks at no constant."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    caches = []
    for node in filter(ops.has_state, graph.nodes):
        pasts = [name for role, name in ops.named(node).items() if role.startswith("past_")]
        made = zip(node.outputs, _made(graph, makers, node), strict=True)
        presents = [(name, value) for name, value in made if is_present(value)]
        for past, (present, value) in zip(pasts, presents, strict=True):
            caches.append(Cache(past, present, *_stored(value)))
    return caches


def _stored(value: Value) -> tuple[str, tuple[int | None, ...]]:
    """Type and shape of a new state or cache."""
    if value.kind.startswith(NEW_STATE):
        return value.kind.removeprefix(NEW_STATE), value.size
    heads, columns = value.size
    return value.kind.removeprefix(NEW_CACHE), (heads, None, columns)


def _made(graph: Graph, makers: Mapping[str, Node], node: Node) -> tuple[Value, ...]:
    """What a node makes whose widths follow from attributes, its own or those of the nodes before it."""
    first, *others = ops.computed(node)
    maker, given = makers.get(first), UNKNOWN_CACHE
    if maker is not None and not ops.of(maker).TRAITS.product:
        given = _made(graph, makers, maker)[maker.outputs.index(first)]
    return ops.of(node).values(graph, node, (given, *[UNKNOWN_CACHE] * len(others)))[1]


def _check_readers(graph: Graph, values: Mapping[str, Value]) -> None:
    """Logits and caches leave the graph; all else is read in it, what is overwritten by one node."""
    last, users = graph.nodes[-1], graph.users()
    if not ops.of(graph.head).TRAITS.product or last.outputs != (LOGITS,):
        what = f"the last node must be a product that computes {LOGITS!r}, or a SoftCap of one"
        raise disagreement(last, what)
    for node in graph.nodes:
        for name in node.outputs:
            leaves = name == LOGITS or is_present(values[name])
            if leaves != (name in graph.outputs):
                what = "" if leaves else " not"
                raise disagreement(node, f"{name!r} must{what} be an output of the graph")
            if not leaves and name not in users:
                raise disagreement(node, f"no node reads {name!r}")
        inputs = ops.named(node)
        for role in ops.signature(node).overwritten:
            if len(users[inputs[role]]) > 1:
                raise disagreement(node, f"{role} {inputs[role]!r} has another reader")


def _check_vocabulary(graph: Graph, vocabulary: int, context: int) -> None:
    """A row of embedding and head for each token, of learned positions for each that there can be."""
    tables = [node for node in graph.nodes if ops.of(node).TRAITS.embedding]
    if tables and all(node.inputs[0] == POSITION_IDS for node in tables):
        raise disagreement(tables[0], f"its ids {POSITION_IDS!r} are positions, and no node embeds tokens")
    for node in graph.nodes:
        if not ops.of(node).TRAITS.embedding and node is not graph.head:
            continue
        rows = sizes(graph, node)[0]
        if node.inputs[0] == POSITION_IDS:
            if rows < context:
                problem = f"{rows} rows, the metadata's context_length is {context}"
                raise disagreement(node, problem)
        elif rows != vocabulary:
            raise disagreement(node, f"{rows} rows, the metadata's vocab_size is {vocabulary}")


def _check_floats(graph: Graph, node: Node, checked: set[str]) -> None:
    """Attributes and constants but for the matrices of float graphs. `checked` grows."""
    epsilon, scale = node.attrs.get("epsilon", 1.0), node.attrs.get("scale", 1.0)
    if not 0 < float(epsilon) <= 1:  # of 0, a row of zeros would be divided by zero
        raise disagreement(node, f"epsilon is {epsilon}, not a small number above 0")
    if not 0 < float(scale) <= MOST_SCALE:
        raise disagreement(node, f"scale is {scale}, not a number above 0 and up to {MOST_SCALE:g}")
    for (role, expected), name in zip(ops.signature(node).inputs.items(), node.inputs, strict=True):
        if expected is None or expected.dtype != "float32":
            continue
        if ops.of(node).TRAITS.original and len(expected.shape) > 1:
            continue
        if name not in checked:
            checked.add(name)
            _check_numbers(node, role, name, graph.constants[name])


def _check_numbers(node: Node, role: str, name: str, tensor: Tensor) -> None:
    if not tensor.data.size:
        raise disagreement(node, f"{role} {name!r} is empty")
    low, high = float(tensor.data.min()), float(tensor.data.max())  # NaN if one is NaN
    if role == "inverse_scale":
        if not 0 < low <= high < np.inf:
            raise disagreement(node, f"{role} {name!r} is {low}, not a finite number above 0")
    elif not (low >= -MOST and high <= MOST):
        raise disagreement(node, f"{role} {name!r} has {low} … {high}, not finite numbers within ±{MOST:g}")
