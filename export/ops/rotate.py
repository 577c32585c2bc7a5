"""Rotate: the rotary embedding over the halves of each head."""

from __future__ import annotations

import numpy as np

from flatlm.runtime.format.graph import Graph, Node

from .function import Env, Function, Operation

_BODY = """(x, cos, sin) => (y) {
    heads_axis = Constant <value_ints = [1]> ()
    cos_heads = Unsqueeze (cos, heads_axis)
    sin_heads = Unsqueeze (sin, heads_axis)
    first_half, second_half = Split <axis = -1, num_outputs = 2> (x)
    first_cos = Mul (first_half, cos_heads)
    second_sin = Mul (second_half, sin_heads)
    first_turned = Sub (first_cos, second_sin)
    second_cos = Mul (second_half, cos_heads)
    first_sin = Mul (first_half, sin_heads)
    second_turned = Add (second_cos, first_sin)
    y = Concat <axis = -1> (first_turned, second_turned)
}"""

NAME = "Rotate"


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x [..., B, heads, T, d], cos and sin [B, T, d/2]."""
    cos, sin = cos[:, None], sin[:, None]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def operation(graph: Graph, node: Node) -> Operation:
    return lambda x, cos, sin: (rotate(x, cos, sin),)


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    cos, sin = (env[name] for name in node.inputs[1:])
    return (rotate(y, cos, -sin),)  # the inverse of a rotation


def body(node: Node) -> str:
    return _BODY


ROTATE = Function(NAME, operation, backward, body)
