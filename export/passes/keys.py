"""Keys for an int8 cache: range moves from large key channels into the queries.

q · k stays the same if channel c of k is divided by s[c] and that of q multiplied; both are rows of one
FlatLinear, whose scale and bias are per row: no integer changes. The rotary embedding mixes channels i and
i + d/2, so a pair shares one s, and query heads that share a key head share all. s = √(max|k| / max|q|)
balances the two, which both become int8 with one scale per token and head. Qwen2.5's keys need it: biases
make some channels 20 times the others (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from flatlm.export.execute import rotate
from flatlm.runtime.format.functions import LINEARS
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.nested import layer_of

from .cache import ATTENTION

_LEAST = 1e-5


def readers(nodes: Iterable[Node]) -> list[Node]:
    return [node for node in nodes if node.op == ATTENTION]


def reach(node: Node, qkv: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Largest |q| and |k| of each pair, after the rotation: qkv [B, T, (h + 2g)·d] → [2, g, d/2]."""
    h, g, d = _sizes(node)
    turned = np.abs(rotate(qkv.reshape(*qkv.shape[:2], h + 2 * g, d)[:, :, : h + g], cos, sin)).max((0, 1))
    pairs = np.maximum(*np.split(turned, 2, axis=-1))
    return np.stack([pairs[:h].reshape(g, h // g, d // 2).max(1), pairs[h:]])


def scales(reached: np.ndarray) -> np.ndarray:
    """s float32 [g, d/2] with geometric mean 1 for each key head, from `reach` over all windows."""
    logs = np.log(reached.clip(_LEAST))
    s = (logs[1] - logs[0]) / 2
    return np.exp(s - s.mean(-1, keepdims=True)).astype(np.float32)


def apply(graph: Graph, node: Node, s: np.ndarray) -> None:
    """Folds s into the scales and biases of the FlatLinear that `node` reads, of its planes if it is nested
    (and not joined yet); the integers stay."""
    h, g, d = _sizes(node)
    linear = next(other for other in graph.nodes if node.inputs[0] in other.outputs)
    both = np.concatenate([s, s], -1)  # [g, d]
    parts = [np.repeat(both, h // g, 0), 1 / both, np.ones((g, d))]
    factor = np.concatenate([part.reshape(-1) for part in parts]).astype(np.float32)
    planes = [other for other in graph.nodes if other.op in LINEARS and layer_of(other.name) == linear.name]
    for name in (name for plane in planes for name in plane.inputs[2:4]):
        graph.constants[name] = Tensor.of(graph.array(name) * factor)


def _sizes(node: Node) -> tuple[int, int, int]:
    h, g, d = (int(node.attrs[name]) for name in ("num_heads", "kv_num_heads", "head_size"))
    return h, g, d
