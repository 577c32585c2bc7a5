"""Keys for an int8 cache: range moves from large key channels into the queries.

q · k stays the same if channel c of k is divided by s[c] and that of q multiplied; both are rows of one
FlatLinear, whose scale and bias are per row: no integer changes. The rotary embedding mixes channels i and
i + d/2, so a pair shares one s, and query heads that share a key head share all. s = √(max|k| / max|q|)
balances the two, which both become int8 with one scale per token and head. Qwen2.5's keys need it: biases
make some channels 20 times the others (docs/log/kv-cache.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from flatlm.export import ops
from flatlm.export.ops.function import Int8Cache
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.nested import layer_of

_LEAST = 1e-5


def readers(nodes: Iterable[Node]) -> list[Node]:
    """Those whose cache may become int8."""
    return [node for node in nodes if ops.of(node.op).int8_cache]


def _int8_cache(node: Node) -> Int8Cache:
    found = ops.of(node.op).int8_cache
    assert found is not None, node.op
    return found


def reach(node: Node, qkv: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Largest |q| and |k| of each pair, after the rotation: qkv [B, T, (h + 2g)·d] → [2, g, d/2]."""
    return _int8_cache(node).reach(node, qkv, cos, sin)


def scales(reached: np.ndarray) -> np.ndarray:
    """s float32 [g, d/2] with geometric mean 1 for each key head, from `reach` over all windows."""
    logs = np.log(reached.clip(_LEAST))
    s = (logs[1] - logs[0]) / 2
    balanced: np.ndarray = np.exp(s - s.mean(-1, keepdims=True))
    return balanced.astype(np.float32)


def apply(graph: Graph, node: Node, s: np.ndarray) -> None:
    """Folds s into the scales and biases of the FlatLinear that `node` reads, of its planes if it is nested
    (and not joined yet); the integers stay."""
    linear = next(other for other in graph.nodes if node.inputs[0] in other.outputs)
    factor = _int8_cache(node).factors(node, s)
    planes = [other for other in ops.linears(graph.nodes) if layer_of(other.name) == linear.name]
    for name in (name for plane in planes for name in plane.inputs[2:4]):
        graph.constants[name] = Tensor.of(graph.array(name) * factor)
