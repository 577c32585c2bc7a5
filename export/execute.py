"""Runs a graph in numpy with BLAS: for calibration and for measuring what quantization costs.

Layer-major: all windows go through block i before block i + 1 is read, so weights are read once and
few live at a time. It knows the functions of docs/format.md and no architecture. Not bit-exact: that
is `flatlm.kernels_arm.reference`; here a FlatLinear is its integers in float32 BLAS, off by rounding only.

Legend: B windows, T tokens of a window, k inputs, n outputs, h heads, g key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.export.parallel import each
from flatlm.kernels_arm.reference import FLOOR, quantize_heads
from flatlm.runtime.errors import UnsupportedError
from flatlm.runtime.format.functions import LINEARS, TOKEN_LINEAR
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.ops import named

Env = dict[str, np.ndarray]  # values by name, for one chunk of windows
Operation = Callable[..., tuple[np.ndarray, ...]]

_QUERIES = 128  # queries of one attention block: keys after its end are skipped


@dataclass(frozen=True, slots=True)
class Step:
    """A node with its weights at hand: run(inputs that are not constants) → outputs."""

    node: Node
    run: Operation


@dataclass(frozen=True, slots=True)
class Scores:
    """Over the predicted positions 1 … T−1 of every window: nats, perplexity, mean KL(reference ‖ graph)."""

    nll: float
    perplexity: float
    kl: float | None = None
    top1: float | None = None  # share of positions with the reference's most likely token


def prepare(graph: Graph, nodes: Iterable[Node]) -> list[Step]:
    """Reads (and unpacks) the weights of `nodes`; they live as long as the steps."""
    return [Step(node, operation(graph, node)) for node in nodes]


def operation(graph: Graph, node: Node) -> Operation:
    """The node as a function of its inputs that are not constants."""
    if node.op not in _OPERATIONS:
        known = ", ".join(sorted(_OPERATIONS))
        raise UnsupportedError(f"cannot run {node.op} ({node.name}); known functions: {known}")
    return _OPERATIONS[node.op](graph, node)


def run(steps: Iterable[Step], env: Env) -> None:
    """Runs the steps on one chunk; results are added to `env`."""
    for step in steps:
        inputs = [env[name] for name in step.node.inputs if name in env]
        env.update(zip(step.node.outputs, step.run(*inputs), strict=False))


def keep(env: Env, later: Iterable[Node]) -> None:
    """Drops from `env` what no later node reads."""
    needed = {name for node in later for name in node.inputs}
    for name in [name for name in env if name not in needed]:
        del env[name]


def advance(steps: Sequence[Step], envs: Iterable[Env], later: Sequence[Node]) -> None:
    """Takes all chunks through the steps, side by side; what `later` nodes do not read is dropped."""

    def step(env: Env) -> None:
        run(steps, env)
        keep(env, later)

    each(step, envs)


def chunks(tokens: np.ndarray, size: int = 4) -> list[Env]:
    """Windows [B, T] → environments of `size` windows each."""
    position = np.arange(tokens.shape[1])[None]
    parts = [tokens[at : at + size] for at in range(0, len(tokens), size)]
    return [{"input_ids": part, "position_ids": position} for part in parts]


def run_blocks(graph: Graph, envs: Sequence[Env]) -> list[Step]:
    """Runs all blocks but the last over all chunks; returns the last one's steps, for the caller to run."""
    *most, last = graph.blocks
    for i, block in enumerate(most):
        steps = prepare(graph, block)
        later = [node for group in [*most[i + 1 :], last] for node in group]
        advance(steps, envs, later)
    return prepare(graph, last)


def logits(graph: Graph, tokens: np.ndarray) -> np.ndarray:
    """Windows [B, T] → float32 [B, T, V]. Mind the memory: `evaluate` never holds them all."""
    envs = chunks(tokens)
    last = run_blocks(graph, envs)
    for env in envs:
        run(last, env)
    return np.concatenate([env["logits"] for env in envs])


def evaluate(graph: Graph, tokens: np.ndarray, reference: Graph | None = None) -> Scores:
    """Perplexity on windows [B, T] (no begin token added), and KL to `reference` on the same tokens."""
    envs, others = chunks(tokens, 1), chunks(tokens, 1)
    last = run_blocks(graph, envs)
    last_of_reference = run_blocks(reference, others) if reference else []
    nll, kl, same = [], [], []
    for window, env, other in zip(tokens, envs, others, strict=True):
        run(last, env)
        scores = log_softmax(env.pop("logits")[0])
        nll.append(-np.mean(scores[np.arange(len(window) - 1), window[1:]], dtype=np.float64))
        if reference:
            run(last_of_reference, other)
            wanted = log_softmax(other.pop("logits")[0])
            kl.append(divergence(wanted, scores))
            same.append(np.mean(wanted.argmax(-1) == scores.argmax(-1)))
    mean = float(np.mean(nll))
    return Scores(mean, float(np.exp(mean)), *((float(np.mean(v)) if v else None) for v in (kl, same)))


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis; a new array."""
    x = x - x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def divergence(wanted: np.ndarray, scores: np.ndarray) -> float:
    """Mean KL(wanted ‖ scores) in nats over positions; both are log probabilities [..., V]."""
    return float(np.mean(np.sum(np.exp(wanted) * (wanted - scores), -1), dtype=np.float64))


# ---- the functions: each reads its constants once and returns the operation
def _rotary_table(graph: Graph, node: Node) -> Operation:
    frequency = graph.array(node.inputs[1]).astype(np.float64)

    def rotary_table(positions: np.ndarray) -> tuple[np.ndarray, ...]:
        angle = positions[..., None] * frequency
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    return rotary_table


def _embedding(graph: Graph, node: Node) -> Operation:
    weight = graph.array(node.inputs[1])
    return lambda ids: (weight[ids].astype(np.float32),)


def _flat_embedding(graph: Graph, node: Node) -> Operation:
    weight, scale = graph.totals(node), graph.array(node.inputs[2])
    return lambda ids: (weight[ids] * scale[ids][..., None],)


def _norm(graph: Graph, node: Node) -> Operation:
    weight, epsilon = graph.array(node.inputs[1]), np.float32(node.attrs["epsilon"])

    def norm(x: np.ndarray) -> tuple[np.ndarray, ...]:
        mean = np.einsum("...k,...k->...", x, x)[..., None] / np.float32(x.shape[-1])
        return (x * (1 / np.sqrt(mean + epsilon)) * weight,)

    return norm


def _linear(graph: Graph, node: Node) -> Operation:
    weight, bias = (graph.array(name) for name in node.inputs[1:3])
    return linear(weight, bias)


def linear(weight: np.ndarray, bias: np.ndarray) -> Operation:
    """The float layer: weight [n, k], bias [n]."""
    weight = np.ascontiguousarray(weight, np.float32)
    return lambda x: (x @ weight.T + bias,)


def _flat_linear(graph: Graph, node: Node) -> Operation:
    roles = named(node)
    weights = graph.totals(node).astype(np.float32)
    scale, bias, limit = (graph.array(roles[role]) for role in ("scale", "bias", "limit"))
    if node.op == TOKEN_LINEAR:
        return token_linear(weights, scale, bias, limit, int(node.attrs["levels"]))
    return flat_linear(weights, scale, bias, graph.array(roles["inverse_scale"]), limit)


def flat_linear(weights, scale, bias, inverse_scale, limit) -> Operation:
    """The integer layer with weights [n, k] as float32 integers; the sum of pieces is X itself."""
    inverse_scale, limit = np.float32(inverse_scale), limit.astype(np.float32)

    def flat_linear(x: np.ndarray) -> tuple[np.ndarray, ...]:
        x = x * inverse_scale
        np.rint(x, out=x)
        np.clip(x, -limit, limit, out=x)
        y = x @ weights.T
        y *= scale
        y += bias
        return (y,)

    return flat_linear


def token_linear(weights, scale, bias, limit, levels: int) -> Operation:
    """The same with a step for each token."""

    def token_linear(x: np.ndarray) -> tuple[np.ndarray, ...]:
        steps, step = token_steps(x, limit, levels)
        y = steps @ weights.T
        y *= scale
        y *= step
        y += bias
        return (y,)

    return token_linear


def token_steps(x: np.ndarray, limit: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """x [..., k] → X as float32 integers, and each token's step [..., 1]: `reference.quantize_token`."""
    most = np.float32(levels)
    largest = np.maximum((np.abs(x) * (most / limit.astype(np.float32))).max(-1, keepdims=True), FLOOR)
    steps = x * (most / largest)
    return np.rint(steps, out=steps), largest / most


def _rotary_attention(graph: Graph, node: Node, stored: Callable = lambda x: x) -> Operation:
    """`stored` is what the cache makes of q, k and v [..., d]."""
    h, g, d = (int(node.attrs[name]) for name in ("num_heads", "kv_num_heads", "head_size"))
    scale = np.float32(node.attrs["scale"])

    def rotary_attention(qkv: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> tuple[np.ndarray, ...]:
        batch, length, _ = qkv.shape
        heads = qkv.reshape(batch, length, h + 2 * g, d)
        turned = rotate(heads[:, :, : h + g], cos, sin)
        q, k, v = map(stored, (turned[:, :, :h], turned[:, :, h:], heads[:, :, h + g :]))
        q = q.reshape(batch, length, g, h // g, d).transpose(0, 2, 3, 1, 4) * scale
        k, v = (part.transpose(0, 2, 1, 3) for part in (k, v))
        out = _causal_attention(q, np.ascontiguousarray(k), np.ascontiguousarray(v))
        return (out.transpose(0, 3, 1, 2, 4).reshape(batch, length, h * d), k, v)

    return rotary_attention


def _rotary_attention_int8(graph: Graph, node: Node) -> Operation:
    return _rotary_attention(graph, node, _as_int8)


def _as_int8(x: np.ndarray) -> np.ndarray:
    integers, scale = quantize_heads(x)
    return integers * scale[..., None]


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary embedding. x [B, T, heads, d], cos and sin [B, T, d/2]."""
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def _causal_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q [B, g, h/g, T, d], k and v [B, g, T, d] → like q."""
    batch, groups, shared, length, size = q.shape
    out = np.empty(q.shape, np.float32)
    for start in range(0, length, _QUERIES):
        stop = min(start + _QUERIES, length)
        part = q[:, :, :, start:stop].reshape(batch, groups, -1, size)
        scores = part @ k[:, :, :stop].swapaxes(2, 3)
        view = scores.reshape(batch, groups, shared, stop - start, stop)
        hidden = np.triu(np.full((stop - start, stop - start), -np.inf, np.float32), 1)
        view[..., start:] += hidden
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        total = scores.sum(-1, keepdims=True)
        result = (scores @ v[:, :, :stop]) / total
        out[:, :, :, start:stop] = result.reshape(batch, groups, shared, stop - start, size)
    return out


def _swiglu(graph: Graph, node: Node) -> Operation:
    def swiglu(gate_up: np.ndarray) -> tuple[np.ndarray, ...]:
        gate, up = np.split(gate_up, 2, axis=-1)
        with np.errstate(over="ignore"):  # e^-gate may be inf, and the gate is then 0, as it should be
            return (gate / (1 + np.exp(-gate)) * up,)

    return swiglu


def _add(graph: Graph, node: Node) -> Operation:
    return lambda a, b: (a + b,)


_OPERATIONS: dict[str, Callable[[Graph, Node], Operation]] = {
    "RotaryTable": _rotary_table,
    "Embedding": _embedding,
    "FlatEmbedding": _flat_embedding,
    "Norm": _norm,
    "Linear": _linear,
    **dict.fromkeys(LINEARS, _flat_linear),
    "RotaryAttention": _rotary_attention,
    "RotaryAttentionInt8": _rotary_attention_int8,
    "SwiGLU": _swiglu,
    "Add": _add,
}
