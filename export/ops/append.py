"""Append: keys and values of the new positions go to the end of the cache, which is float32 or int8.

int8 has a scale for each token and head. While a model is exported there is no past.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from flatlm.export.onnx_text.head_integers import floats, quantized
from flatlm.kernels_arm import reference
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.ops.append import INT8

from .function import Channels, Env, Function, Operation

_BODY = """<state> (k, v, past_key, past_value) => (present_key, present_value) {
    present_key = Concat <axis = 2> (past_key, k)
    present_value = Concat <axis = 2> (past_value, v)
}"""

_INT8_BODY = f"""<state> (k, v, past_key, past_key_scale, past_value, past_value_scale)
    => (present_key, present_key_scale, present_value, present_value_scale) {{
    infer = Constant <value_ints = [-1]> ()
{floats("floor", "head_levels")}
{"".join(map(quantized, "kv"))}
    k_int8 = Cast <to = 3> (k_integers)
    v_int8 = Cast <to = 3> (v_integers)
    present_key = Concat <axis = 2> (past_key, k_int8)
    present_value = Concat <axis = 2> (past_value, v_int8)
    present_key_scale = Concat <axis = 2> (past_key_scale, k_scale)
    present_value_scale = Concat <axis = 2> (past_value_scale, v_scale)
}}"""

NAME = "Append"


def is_int8(node: Node) -> bool:
    return node.attrs["state"] == INT8


def as_int8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heads [..., d] → their integers, and scales [..., 1]."""
    integers, scale = reference.quantize_heads(x)
    return integers, scale[..., None]


def operation(graph: Graph, node: Node) -> Operation:
    if is_int8(node):
        return lambda k, v: (*as_int8(k), *as_int8(v))
    return lambda k, v: (k, v)


def backward(graph: Graph, node: Node, env: Env, *present: np.ndarray) -> tuple[np.ndarray, ...]:
    return present


def body(node: Node) -> str:
    return _INT8_BODY if is_int8(node) else _BODY


def origin(graph: Graph, node: Node, channels: Channels) -> Channels:
    return replace(channels, value=node.inputs[node.outputs.index(channels.value)])


def over_int8(node: Node) -> Node:
    inputs = (*node.inputs[:2], *with_scales(node.inputs[2:]))
    outputs = tuple(with_scales(node.outputs))
    return replace(node, inputs=inputs, outputs=outputs, attrs={**node.attrs, "state": INT8})


def with_scales(names: Iterable[str]) -> list[str]:
    """Parts of a float32 cache → those of an int8 one: each is followed by its scales."""
    return [one for name in names for one in (name, f"{name}_scale")]


APPEND = Function(NAME, operation, backward, body, origin=origin, over_int8=over_int8)
