"""Gradients of the model's own log likelihood, block by block from the end: what an error anywhere costs.

Tokens are drawn from the float model's own distribution. With g the gradient of their log likelihood, an
error δ anywhere in the model causes a KL divergence of ½ · E[(g · δ)²], to second order (the Fisher
information): one sweep back tells for every layer what every way to round it would cost, without running the
model again.

Legend: S draws, B windows, T tokens, k inputs, n outputs, h heads, g key/value heads, d head size, V
vocabulary. Values are [B, T, ·], gradients [S, B, T, ·].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flatlm.export import execute
from flatlm.export.execute import Env
from flatlm.runtime.format.graph import Graph, Node

Gradients = dict[str, np.ndarray]  # by the name of the value


def draw(scores: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:
    """Log probabilities [B, T, V] → ∂ log p(drawn token) / ∂ logits, [S, B, T, V].

    The first position is left out: it sees only itself, and its logits hang on the attention sink's
    activations.
    """
    rng = np.random.default_rng(seed)
    p = np.exp(scores)
    sums = np.cumsum(p, -1, dtype=np.float64)
    gradient = np.broadcast_to(-p, (draws, *p.shape)).copy()
    for one in gradient:
        at = (sums < rng.random((*p.shape[:2], 1)) * sums[..., -1:]).sum(-1)
        np.put_along_axis(one, at[..., None], np.take_along_axis(one, at[..., None], -1) + 1, -1)
    gradient[:, :, 0] = 0
    return gradient


def backward(graph: Graph, nodes: Sequence[Node], env: Env, gradients: Gradients) -> None:
    """Adds the gradients of all values that `nodes` read; `env` holds those values."""
    for node in reversed(nodes):
        if node.op not in _BACKWARD:  # of token ids and positions
            continue
        found = _BACKWARD[node.op](graph, node, env, gradients[node.outputs[0]])
        for name, gradient in zip(node.inputs, found, strict=False):
            gradients[name] = gradients[name] + gradient if name in gradients else gradient


def _linear(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    weight = graph.array(node.inputs[1])
    return ((y.reshape(-1, y.shape[-1]) @ weight).reshape(*y.shape[:-1], -1),)


def _norm(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    x, weight = env[node.inputs[0]], graph.array(node.inputs[1])
    r = 1 / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(node.attrs["epsilon"]))
    y = y * weight
    return (r * (y - x * (r**2 * np.mean(y * x, -1, keepdims=True))),)


def _swiglu(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    gate, up = np.split(env[node.inputs[0]], 2, axis=-1)
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-gate))
    return (np.concatenate([y * (up * sigmoid * (1 + gate * (1 - sigmoid))), y * (gate * sigmoid)], -1),)


def _add(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    return y, y


def _rotary_attention(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """All scores at once: windows are short here."""
    h, g, d = (int(node.attrs[name]) for name in ("num_heads", "kv_num_heads", "head_size"))
    qkv, cos, sin = (env[name] for name in node.inputs[:3])
    batch, length, _ = qkv.shape
    heads = qkv.reshape(batch, length, h + 2 * g, d)
    turned = execute.rotate(heads[:, :, : h + g], cos, sin)
    scale = np.float32(node.attrs["scale"])
    q = turned[:, :, :h].reshape(batch, length, g, h // g, d).transpose(0, 2, 3, 1, 4)  # [B, g, h/g, T, d]
    k, v = (x.transpose(0, 2, 1, 3)[:, :, None] for x in (turned[:, :, h:], heads[:, :, h + g :]))
    p = q @ k.swapaxes(-1, -2) * scale
    p += np.triu(np.full((length, length), -np.inf, np.float32), 1)
    p = np.exp(execute.log_softmax(p))
    y = y.reshape(-1, batch, length, g, h // g, d).transpose(0, 1, 3, 4, 2, 5)  # [S, B, g, h/g, T, d]
    scores = y @ v.swapaxes(-1, -2)
    scores -= (scores * p).sum(-1, keepdims=True)
    scores *= p * scale
    of_v = (p.swapaxes(-1, -2) @ y).sum(3)  # [S, B, g, T, d]
    of_q, of_k = scores @ k, (scores.swapaxes(-1, -2) @ q).sum(3)
    draws = len(y)
    of_q = of_q.transpose(0, 1, 4, 2, 3, 5).reshape(draws, batch, length, h, d)
    of_k, of_v = (x.transpose(0, 1, 3, 2, 4) for x in (of_k, of_v))
    back = np.concatenate([of_q, of_k], 3)
    back = np.stack([execute.rotate(one, cos, -sin) for one in back])  # the inverse of a rotation
    return (np.concatenate([back, of_v], 3).reshape(draws, batch, length, -1),)


_BACKWARD: dict[str, Callable[[Graph, Node, Env, np.ndarray], tuple[np.ndarray, ...]]] = {
    "Linear": _linear,
    "Norm": _norm,
    "SwiGLU": _swiglu,
    "Add": _add,
    "RotaryAttention": _rotary_attention,
}
