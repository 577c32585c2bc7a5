"""The numpy backend: every function of docs/format.md by its reference. Slow, exact, the specification."""

from __future__ import annotations

import numpy as np

from flatlm.runtime import ops
from flatlm.runtime.backends import still_open
from flatlm.runtime.backends.one_by_one import OneByOne
from flatlm.runtime.format.artifact import Artifact
from flatlm.runtime.format.functions import require_integers
from flatlm.runtime.format.graph import Graph
from flatlm.runtime.states.snapshots import Snapshots


class NumpyBackend(OneByOne):
    """Runs the graph node by node, one sequence after another.

    K/V are kept per sequence and layer as float32 or int8 [context, g, d]. Other states are kept as the last
    step found and as it left them, so a sequence that has such can be cut back to where that step began.
    """

    name = "numpy"

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int | None = None,
        context: int | None = None,
        device: str = "cpu",
        slots: int = 1,
    ):
        self.graph: Graph = artifact.graph
        require_integers(self.graph)
        self.context = context or int(self.graph.metadata["context_length"])
        self.vocab = int(self.graph.metadata["vocab_size"])
        self.slots, self.positions = slots, [0] * slots
        self._slot = 0  # the sequence that is computed
        self._operations = [ops.of(node).numpy(self.graph, node) for node in self.graph.nodes]
        self._inputs = [ops.computed(node) for node in self.graph.nodes]
        self._caches: list[dict[str, tuple[np.ndarray, ...]]] = [{} for _ in range(slots)]
        self._states = [Snapshots[np.ndarray]() for _ in range(slots)]

    def step(self, slot: int, ids: np.ndarray, logits: int) -> np.ndarray:
        still_open(self._caches)
        self._slot, past = slot, self.positions[slot]
        env: dict[str, np.ndarray] = {
            "input_ids": ids,
            "position_ids": np.arange(past, past + len(ids)),
        }
        last = self.graph.head
        self._states[slot].begin(past)
        for node, operation, inputs in zip(self.graph.nodes, self._operations, self._inputs, strict=True):
            given = [env.get(name) for name in inputs]  # None: a past, which `append` has
            if node is last:
                given = [x[max(len(ids) - logits, 0) :] for x in given if x is not None]
            env.update(zip(node.outputs, operation(self, *given), strict=True))
        self.positions[slot] += len(ids)
        return env["logits"]

    def truncate(self, length: int, slot: int = 0) -> int:
        if length < self.positions[slot]:
            self.positions[slot] = self._states[slot].cut_back(length)
        return self.positions[slot]

    def copy(self, source: int, target: int, length: int) -> None:
        held = still_open(self._caches)[source].items()
        self._caches[target] = {name: tuple(array.copy() for array in arrays) for name, arrays in held}
        self._states[target] = self._states[source].copy()
        cut = length < self.positions[source]
        self.positions[target] = self._states[target].cut_back(length) if cut else length

    def close(self) -> None:
        self._caches.clear()
        self._operations.clear()
        self.graph = Graph()

    def append(self, name: str, *rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of the node `name`, in the sequence that is computed: its rows so far, then these [m, …]."""
        cache, past = self._caches[self._slot], self.positions[self._slot]
        if name not in cache:
            cache[name] = tuple(np.zeros((self.context, *x.shape[1:]), x.dtype) for x in rows)
        end = past + len(rows[0])
        for held, new in zip(cache[name], rows, strict=True):
            held[past:end] = new
        return tuple(held[:end] for held in cache[name])

    def recall(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Of the node `name`, in the sequence that is computed."""
        kept = self._states[self._slot].now.get(name)
        return np.zeros(shape, np.float32) if kept is None else kept

    def keep(self, name: str, state: np.ndarray) -> None:
        self._states[self._slot].now[name] = state
