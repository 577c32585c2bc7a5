"""Norm: x, or x less its mean, over its root mean square, times a weight for each channel."""

from __future__ import annotations

import numpy as np

from flatlm.export.constants import shape_of
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.ops.norm import is_centered

from .function import Env, Function, Operation

# x less its mean → `centered`
_CENTER = """
    whole_double = Cast <to = 11> ({x})
    whole_total = ReduceSum <keepdims = 1> (whole_double, last)
    whole_size = Shape <start = -1> ({counted})
    whole_count = Cast <to = 11> (whole_size)
    middle_double = Div (whole_total, whole_count)
    middle = Cast <to = 1> (middle_double)
    centered = Sub ({x}, middle)"""

_SCALE = """
    x_double = Cast <to = 11> ({x})
    squares = Mul (x_double, x_double)
    total = ReduceSum <keepdims = 1> (squares, last)
    size = Shape <start = -1> ({counted})
    count = Cast <to = 11> (size)
    mean = Div (total, count)
    epsilon_float = Constant <value_float: float = @epsilon> ()
    epsilon_double = Cast <to = 11> (epsilon_float)
    shifted = Add (mean, epsilon_double)
    root = Sqrt (shifted)
    one_float = Constant <value_float = 1.0> ()
    one = Cast <to = 11> (one_float)
    inverse_double = Div (one, root)
    inverse = Cast <to = 1> (inverse_double)
    scaled = Mul ({x}, inverse)"""


def scaled(node: Node, x: str = "x", counted: str = "weight") -> str:
    """Lines of a body: x → `scaled`, the norm without its weight; over as many columns as `counted` has."""
    lines = "\n    last = Constant <value_ints = [-1]> ()"
    if is_centered(node):
        lines += _CENTER.format(x=x, counted=counted)
        x = "centered"
    return lines + _SCALE.format(x=x, counted=counted)


def attributes(node: Node, *more: str) -> str:
    """Those that the body has, as its beginning."""
    options = [name for name in ("centered", *more) if name in node.attrs]
    return f"<{', '.join(('epsilon', *options))}>"


def operation(graph: Graph, node: Node) -> Operation:
    weight, epsilon = graph.array(node.inputs[1]), np.float32(node.attrs["epsilon"])
    centered = is_centered(node)

    def norm(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (normed(x, epsilon, centered) * weight,)

    return norm


def normed(x: np.ndarray, epsilon: np.float32, centered: bool) -> np.ndarray:
    """Over the last axis, without a weight."""
    if centered:
        x = x - x.mean(-1, keepdims=True)
    mean = np.einsum("...k,...k->...", x, x)[..., None] / np.float32(x.shape[-1])
    y: np.ndarray = x * (1 / np.sqrt(mean + epsilon))
    return y


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    weight = graph.array(node.inputs[1])
    return (slope(node, env[node.inputs[0]], y * weight),)


def slope(node: Node, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The gradient of x, y that of the norm without its weight."""
    if is_centered(node):
        x = x - x.mean(-1, keepdims=True)
    r = 1 / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(node.attrs["epsilon"]))
    found: np.ndarray = r * (y - x * (r**2 * np.mean(y * x, -1, keepdims=True)))
    return found - found.mean(-1, keepdims=True) if is_centered(node) else found


def body(node: Node) -> str:
    return f"""{attributes(node)} (x, weight) => (y) {{{scaled(node)}
    y = Mul (scaled, weight)
}}"""


def parameters(graph: Graph, node: Node) -> int:
    return int(shape_of(graph, node.inputs[1])[0])


def scale(graph: Graph, node: Node, factor: np.ndarray) -> None:
    name = node.inputs[1]
    graph.constants[name] = Tensor.of((graph.array(name) * factor).astype(np.float32))


NORM = Function("Norm", operation, backward, body, parameters=parameters, scale=scale, wide=0.5)
