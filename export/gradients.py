"""Gradients of the model's own log likelihood, block by block from the end: what an error anywhere costs.

Tokens are drawn from the float model's own distribution. With g the gradient of their log likelihood, an
error δ anywhere in the model causes a KL divergence of ½ · E[(g · δ)²], to second order (the Fisher
information): one sweep back tells for every layer what every way to round it would cost, without running the
model again.

Legend: S draws, B windows, T tokens, V vocabulary. Values are [B, T, ·], gradients [S, B, T, ·].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flatlm.export import ops
from flatlm.export.ops.function import Env
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
        back = ops.of(node.op).backward
        if back is None:  # of token ids and positions
            continue
        # a state leaves the graph unread: it has no gradient
        found = back(graph, node, env, *(gradients[name] for name in node.outputs if name in gradients))
        for name, gradient in zip(node.inputs, found, strict=False):
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
