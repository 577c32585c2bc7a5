"""Float originals, of graphs that are not quantized yet: onnxruntime runs them, our own backends do not."""

from __future__ import annotations

from flatlm.runtime.errors import FormatError
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.format.signature import misfit
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation


def refusal(node: Node) -> FormatError:
    return misfit(node, "a float original, which only onnxruntime runs: --backend ort")


def numpy(graph: Graph, node: Node) -> Operation:
    raise refusal(node)


def lower(lowering: Lowering, group: Group) -> None:
    raise refusal(group.node)
