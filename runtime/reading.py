"""What a token reads of a model: all of its weights, but of experts only those that it goes to.

Weights stay in the mapped file. What no token needs is not read, and what does not fit into the memory goes
again: a model of many experts runs where its file is larger than the memory, if what each token reads fits.
"""

from __future__ import annotations

from dataclasses import dataclass

from flatlm.runtime import ops
from flatlm.runtime.format.graph import Graph
from flatlm.runtime.ops import flat_experts


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes of constants."""

    all: int
    experts: int  # of all that there are
    chosen: int  # of those that a token goes to
    rows: int  # of embeddings that no product shares, but for the row of a token
    layers: tuple[tuple[int, int], ...]  # of each layer of experts: how many a token goes to, of how many

    @property
    def token(self) -> int:
        """What a token reads."""
        return self.resident - self.rows

    @property
    def resident(self) -> int:
        """What must stay in memory for every token not to wait for the disk."""
        return self.all - self.experts + self.chosen

    def __str__(self) -> str:
        kinds = " or ".join(f"{kept} of {count}" for kept, count in sorted(set(self.layers)))
        return f"{self.token / 1e6:,.1f} of {self.all / 1e6:,.1f} MB: {kinds} experts of a layer"


def reading(graph: Graph) -> Reading:
    """Of a graph with integer weights. Looks at no constant."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    users, experts, chosen, rows, layers = graph.users(), 0, 0, 0, []
    for node in graph.nodes:
        if node.op == flat_experts.NAME:
            count, route = int(node.attrs["experts"]), makers[ops.named(node)["choice"]]
            kept, each = int(route.attrs["kept"]), flat_experts.expert_bytes(graph, node)
            experts, chosen = experts + count * each, chosen + min(kept, count) * each
            layers.append((kept, count))
        elif ops.of(node).TRAITS.embedding and len(users[node.inputs[1]]) == 1:
            size = sum(graph.constants[name].data.nbytes for name in node.inputs[1:])
            rows += size - size // int(node.attrs["rows"])
    total = sum(tensor.data.nbytes for tensor in graph.constants.values())
    return Reading(total, experts, chosen, rows, tuple(layers))
