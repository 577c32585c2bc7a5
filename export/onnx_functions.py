"""The functions of a model's ONNX file: one for each body that its nodes have.

onnxruntime inlines a body where the function is called and folds everything that depends on constants
alone. Only operators that have float32 kernels for CPU and for CUDA are used.

The float functions are spelled out to the single rounding, following kernels_arm.reference: elementwise
in float32, sums in float64, and the exponential as the same polynomial. A library's Softmax or Sigmoid
would differ in the last bits, which is enough to move an activation over a rounding boundary, and one
integer that differs spreads through all layers after it: with them onnxruntime agreed with the native
kernels on 97 % of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.parser

from flatlm.export import ops
from flatlm.runtime.format.functions import DOMAIN
from flatlm.runtime.format.graph import Node

OPSET = 23


class Bodies:
    """The bodies in use, each once. Where those of one op differ, the others are its overloads "2", "3" …"""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._overloads: dict[tuple[str, str], str] = {}  # by op and body, in order of first use
        used: dict[str, int] = {}
        for node in nodes:
            key = _key(node)
            if key is None or key in self._overloads:
                continue
            used[node.op] = used.get(node.op, 0) + 1
            self._overloads[key] = str(used[node.op]) if used[node.op] > 1 else ""

    def overload(self, node: Node) -> str | None:
        """Of the function that the node calls; None where it is a standard operator."""
        key = _key(node)
        return None if key is None else self._overloads[key]

    def functions(self) -> list[onnx.FunctionProto]:
        return [function(*key, overload) for key, overload in self._overloads.items()]


def _key(node: Node) -> tuple[str, str] | None:
    body = ops.of(node.op).body
    return None if body is None else (node.op, body(node))


def function(name: str, body: str, overload: str = "") -> onnx.FunctionProto:
    """The function `name` as it goes into a model."""
    header = f'<opset_import: ["": {OPSET}], domain: "{DOMAIN}">'
    made = onnx.parser.parse_function(f"{header}\n{name} {body}")
    if overload:
        made.overload = overload
    return made
