"""SoftCap: cap · tanh(x / cap) of the logits."""

from __future__ import annotations

import numpy as np

from flatlm.export.onnx_text.scores import soft_cap
from flatlm.runtime.format.graph import SOFT_CAP, Graph, Node

from .function import Env, Function, Operation

_BODY = f"""<softcap> (x) => (y) {{
    cap = Constant <value_float: float = @softcap> ()
{soft_cap("x", "y", "cap")}
}}"""


def operation(graph: Graph, node: Node) -> Operation:
    cap = np.float32(node.attrs["softcap"])
    return lambda x: (cap * np.tanh(x / cap),)


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    cap = np.float32(node.attrs["softcap"])
    return (y * (1 - np.square(np.tanh(env[node.inputs[0]] / cap))),)


def body(node: Node) -> str:
    return _BODY


FUNCTION = Function(SOFT_CAP, operation, backward, body)
