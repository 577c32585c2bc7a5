"""Append: the keys and values of the new positions go to the end of the node's state, the K/V cache."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import reference
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Signature, Traits, misfit, no_kernel
from flatlm.runtime.format.values import CACHE, NEW_CACHE, Value, Values, heads, heads_of
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step
from flatlm.runtime.states import Description, kv_float, kv_int8

NAME, TRAITS = "Append", Traits()

FLOAT32, INT8 = "float32", "int8"
STATE = {"state": Attr(str, (FLOAT32, INT8))}

MOST_HEAD_SIZE = 1024  # 127 · 127 times that stays below 2^24, so a float32 product of integers is exact


def parts(state: Attribute | None) -> tuple[str, ...]:
    """What a cache in this state has for each layer, in the order of inputs and outputs."""
    return ("key", "key_scale", "value", "value_scale") if state == INT8 else ("key", "value")


def cache_types(state: Attribute | None, size: int) -> list[tuple[str, int]]:
    """Data type and columns of each part of a cache of heads of `size`."""
    return [("int8", size), ("float32", 1)] * 2 if state == INT8 else [("float32", size)] * 2


def caches(prefix: str, state: Attribute | None, groups: int, size: int) -> Values:
    """The parts as values of a graph."""
    types = cache_types(state, size)
    return tuple(Value(f"{prefix}{dtype}", (groups, columns)) for dtype, columns in types)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    names = parts(attrs.get("state"))
    return Signature(
        dict.fromkeys(("k", "v", *(f"past_{name}" for name in names))),
        tuple(f"present_{name}" for name in names),
        STATE,
        overwritten=("k", "v"),
    )


def check(graph: Graph, node: Node) -> None:
    """The signature says it all."""


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    groups, size = heads_of(given[0])
    kept = node.attrs["state"]
    if kept == INT8 and size > MOST_HEAD_SIZE:
        raise misfit(node, f"head size {size}, an int8 cache has room for {MOST_HEAD_SIZE}")
    both = heads(groups, size)
    return (both, both, *caches(CACHE, kept, groups, size)), caches(NEW_CACHE, kept, groups, size)


def state(graph: Graph, node: Node, values: Mapping[str, Value]) -> Description:
    """A ring where all that reads it sees a window."""
    kind = kv_int8.Int8KV if node.attrs["state"] == INT8 else kv_float.FloatKV
    windows = [int(user.attrs.get("window", 0)) for user in graph.nodes if node.outputs[0] in user.inputs]
    return kind(*heads_of(values[node.inputs[0]]), max(windows, default=0) if all(windows) else 0)


def numpy(graph: Graph, node: Node) -> Operation:
    quantized = node.attrs["state"] == INT8

    def run(step: Step, k: np.ndarray, v: np.ndarray, *past: None) -> tuple[np.ndarray, ...]:
        if quantized:
            return step.append(node.name, *reference.quantize_heads(k), *reference.quantize_heads(v))
        return step.append(node.name, k, v)

    return run


def lower(lowering: Lowering, group: Group) -> None:
    raise no_kernel(group.node, "a cache that no attention of its own alone reads")
