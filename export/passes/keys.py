"""Keys for an int8 cache: range moves from large key channels into the queries.

q · k stays the same if channel c of k is divided by s[c] and that of q multiplied; both are rows of one
FlatLinear, whose scale and bias are per row: no integer changes. The rotary embedding mixes channels i and
i + d/2, so a pair shares one s, and query heads that share a key head share all. s = √(max|k| / max|q|)
balances the two, which both become int8 with one scale per token and head. Qwen2.5's keys need it: biases
make some channels 20 times the others (docs/log/kv-cache.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.export import ops
from flatlm.export.ops import append, attend, heads, rotate
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.nested import layer_of

_LEAST = 1e-5


@dataclass(frozen=True, slots=True)
class Meeting:
    """An attention whose queries and keys are rotated heads of one linear."""

    attend: Node
    heads: Node  # makes them of the linear's output
    q: str  # as they meet: [B, h, T, d]
    k: str  # [B, g, T, d], while the cache is float32

    @property
    def name(self) -> str:
        return self.attend.name


def meetings(nodes: Sequence[Node]) -> list[Meeting]:
    """Every one among `nodes`."""
    makers = {name: node for node in nodes for name in node.outputs}
    found = (_meeting(node, makers) for node in nodes if node.op == attend.NAME)
    return [one for one in found if one is not None]


def _meeting(node: Node, makers: dict[str, Node]) -> Meeting | None:
    q, present = node.inputs[:2]
    kept = makers.get(present)
    if kept is None or kept.op != append.NAME:
        return None
    turned = [makers.get(name) for name in (q, kept.inputs[0])]
    apart = [makers.get(one.inputs[0]) for one in turned if one is not None and one.op == rotate.NAME]
    if len(apart) != 2 or apart[0] is None or apart[0] is not apart[1] or apart[0].op != heads.NAME:
        return None
    return Meeting(node, apart[0], q, present)


def reach(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Largest |q| and |k| of each pair: [B, h, T, d] and [B, g, T, d], as they meet → [2, g, d/2]."""
    most_q, most_k = (np.maximum(*np.split(np.abs(x).max((0, 2)), 2, axis=-1)) for x in (q, k))
    groups = len(most_k)
    return np.stack([most_q.reshape(groups, len(most_q) // groups, -1).max(1), most_k])


def scales(reached: np.ndarray) -> np.ndarray:
    """s float32 [g, d/2] with geometric mean 1 for each key head, from `reach` over all windows."""
    logs = np.log(reached.clip(_LEAST))
    s = (logs[1] - logs[0]) / 2
    balanced: np.ndarray = np.exp(s - s.mean(-1, keepdims=True))
    return balanced.astype(np.float32)


def apply(graph: Graph, meeting: Meeting, s: np.ndarray) -> None:
    """Folds s into the scales and biases of the FlatLinear that the heads are of, of its planes if it is
    nested (and not joined yet); the integers stay."""
    linear = next(node for node in graph.nodes if meeting.heads.inputs[0] in node.outputs)
    factor = _factors(meeting.heads, s)
    planes = [other for other in ops.linears(graph.nodes) if layer_of(other.name) == linear.name]
    for name in (name for plane in planes for name in plane.inputs[2:4]):
        graph.constants[name] = Tensor.of(graph.array(name) * factor)


def _factors(node: Node, s: np.ndarray) -> np.ndarray:
    """s [g, d/2], by which keys are divided → what each row of q, k, v is multiplied by, [(h + 2g)·d]."""
    h, g, d = heads.sizes(node)
    both = np.concatenate([s, s], -1)  # [g, d]
    rows = [np.repeat(both, h // g, 0), 1 / both, np.ones((g, d))]
    return np.concatenate([part.reshape(-1) for part in rows]).astype(np.float32)
