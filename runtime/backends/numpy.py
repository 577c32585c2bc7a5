"""The numpy backend: every function of docs/format.md by its reference. Slow, exact, the specification."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flatlm.kernels_arm import reference
from flatlm.runtime.backends import Segment, check_fit, check_ids, still_open
from flatlm.runtime.format.functions import LINEAR, LINEARS, named, require_integers
from flatlm.runtime.format.graph import Graph, Node

EXACT = 1024  # products of int8 summed in float32 stay below 2**24, hence exact, over this many terms


class NumpyBackend:
    """Runs the graph node by node, one sequence after another.

    K/V are kept per sequence and layer as float32 or int8 [context, g, d].
    """

    name = "numpy"

    def __init__(
        self,
        artifact,
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
        self._linears = {n.name: _Linear(self.graph, n) for n in self.graph.nodes if n.op in LINEARS}
        self._weights: dict[str, np.ndarray] = {}
        self._caches: list[dict[str, tuple[np.ndarray, ...]]] = [{} for _ in range(slots)]

    @property
    def position(self) -> int:
        return self.positions[0]

    def forward(self, ids: np.ndarray, logits: int = 1) -> np.ndarray:
        return self.forward_many([Segment(0, ids, logits)])[0]

    def forward_many(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        check_fit(self.positions, self.context, segments)
        check_ids(self.vocab, segments)
        return [self._run(s.slot, np.asarray(s.ids, np.int64), s.logits) for s in segments]

    def _run(self, slot: int, ids: np.ndarray, logits: int) -> np.ndarray:
        still_open(self._caches)
        self._slot, past = slot, self.positions[slot]
        env: dict[str, np.ndarray] = {
            "input_ids": ids,
            "position_ids": np.arange(past, past + len(ids)),
        }
        last = self.graph.head
        for node in self.graph.nodes:
            if node is last:
                env[node.inputs[0]] = env[node.inputs[0]][max(len(ids) - logits, 0) :]
            results = _OPERATIONS[node.op](self, node, env)
            env.update(zip(node.outputs, results, strict=False))
        self.positions[slot] += len(ids)
        return env["logits"]

    def truncate(self, length: int, slot: int = 0) -> None:
        self.positions[slot] = min(self.positions[slot], length)

    def copy(self, source: int, target: int, length: int) -> None:
        held = still_open(self._caches)[source].items()
        self._caches[target] = {name: tuple(array.copy() for array in arrays) for name, arrays in held}
        self.positions[target] = length

    def close(self) -> None:
        self._caches.clear()
        self._linears.clear()
        self._weights.clear()
        self.graph = Graph()

    # ---- one method per function; each returns its outputs
    def rotary_table(self, node: Node, env) -> tuple[np.ndarray, ...]:
        return reference.rotary_table(env[node.inputs[0]], self.graph.array(node.inputs[1]))

    def embedding(self, node: Node, env) -> tuple[np.ndarray, ...]:
        ids, weight, scale, _, _ = node.inputs
        if weight not in self._weights:
            self._weights[weight] = self.graph.totals(node)
        return (reference.embedding(env[ids], self._weights[weight], self.graph.array(scale)),)

    def norm(self, node: Node, env) -> tuple[np.ndarray, ...]:
        x, weight = node.inputs
        return (reference.norm(env[x], self.graph.array(weight), float(node.attrs["epsilon"])),)

    def linear(self, node: Node, env) -> tuple[np.ndarray, ...]:
        return (self._linears[node.name](env[node.inputs[0]]),)

    def attention(self, node: Node, env) -> tuple[np.ndarray, ...]:
        q, k, v = self._turned(node, env)
        keys, values = self._appended(node, k, v)
        out = reference.attention(q, keys, values, float(node.attrs["scale"]))
        return (out.reshape(len(q), -1),)

    def attention_int8(self, node: Node, env) -> tuple[np.ndarray, ...]:
        q, k, v = self._turned(node, env)
        cache = self._appended(node, *reference.quantize_heads(k), *reference.quantize_heads(v))
        keys, key_scales, values, value_scales = cache
        scale = float(node.attrs["scale"])
        out = reference.attention_int8(q, keys, key_scales, values, value_scales, scale)
        return (out.reshape(len(q), -1),)

    def _turned(self, node: Node, env) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """q [m, h, d], k and v [m, g, d] after the rotary embedding."""
        heads, groups, size = (int(node.attrs[a]) for a in ("num_heads", "kv_num_heads", "head_size"))
        qkv = env[node.inputs[0]].reshape(-1, heads + 2 * groups, size)
        turned = reference.rotate(qkv[:, : heads + groups], env[node.inputs[1]], env[node.inputs[2]])
        return turned[:, :heads], turned[:, heads:], qkv[:, heads + groups :]

    def _appended(self, node: Node, *rows: np.ndarray) -> list[np.ndarray]:
        """The layer's cache with the new `rows` [m, …] at its end."""
        cache, past = self._caches[self._slot], self.positions[self._slot]
        if node.name not in cache:
            cache[node.name] = tuple(np.zeros((self.context, *x.shape[1:]), x.dtype) for x in rows)
        end = past + len(rows[0])
        for held, new in zip(cache[node.name], rows, strict=True):
            held[past:end] = new
        return [held[:end] for held in cache[node.name]]

    def swiglu(self, node: Node, env) -> tuple[np.ndarray, ...]:
        return (reference.swiglu(env[node.inputs[0]]),)

    def add(self, node: Node, env) -> tuple[np.ndarray, ...]:
        return (env[node.inputs[0]] + env[node.inputs[1]],)


_OPERATIONS: dict[str, Callable] = {
    "RotaryTable": NumpyBackend.rotary_table,
    "FlatEmbedding": NumpyBackend.embedding,
    "Norm": NumpyBackend.norm,
    **dict.fromkeys(LINEARS, NumpyBackend.linear),
    "RotaryAttention": NumpyBackend.attention,
    "RotaryAttentionInt8": NumpyBackend.attention_int8,
    "SwiGLU": NumpyBackend.swiglu,
    "Add": NumpyBackend.add,
}


class _Linear:
    """A FlatLinear or FlatLinearToken whose integer product goes through float32 BLAS in exact pieces."""

    def __init__(self, graph: Graph, node: Node):
        roles = named(node)
        self.weights = graph.totals(node).T.astype(np.float32)  # [k, n]
        self.scale, self.bias = graph.array(roles["scale"]), graph.array(roles["bias"])
        self.inverse = np.float32(graph.array(roles["inverse_scale"])[()]) if node.op == LINEAR else None
        self.levels = int(node.attrs["levels"])
        self.limit = graph.array(roles["limit"]).astype(np.int32)
        self.wide = np.flatnonzero(self.limit > 127)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.inverse is None:
            steps, step = reference.quantize_token(x, self.limit, self.levels)
        else:
            steps, step = reference.quantize(x, self.inverse, self.limit), None
        low, high = reference.digits(steps, self.limit)
        acc = _exact(low, self.weights)
        if self.wide.size:
            acc += reference.DIGIT * _exact(high[:, self.wide], self.weights[self.wide])
        return reference.scale_product(acc, self.scale, self.bias, step)


def _exact(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """int8 [m, k] · integer-valued float32 [k, n] → int32 [m, n]."""
    acc = np.zeros((len(x), weights.shape[1]), np.int32)
    for at in range(0, weights.shape[0], EXACT):
        acc += (x[:, at : at + EXACT].astype(np.float32) @ weights[at : at + EXACT]).astype(np.int32)
    return acc
