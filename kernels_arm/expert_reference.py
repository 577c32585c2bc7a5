"""Routing and the sum of a token's experts in plain numpy: the specification, beside reference.py.

Legend: m tokens, E experts.
"""

from __future__ import annotations

import numpy as np

from .reference import exp, sigmoid


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    powers = exp(x - x.max(-1, keepdims=True))
    total = powers.sum(-1, keepdims=True, dtype=np.float64)
    return powers * (1 / total).astype(np.float32)


def route(
    logits: np.ndarray,
    kept: int,
    kind: str,
    select: np.ndarray | None = None,
    normalize: bool = True,
    scale: float = 1.0,
    floor: float = 0.0,
    groups: int = 1,
    keep: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """float32 [m, E] → each token's experts int64 [m, kept], the best first, and their shares float32.

    kind: of the logits, "softmax" or "sigmoid"; "topk_softmax": softmax of those of the chosen ones. Of equal
    ones the lower number comes first. select [E] counts in the choice alone. groups: the experts are so many
    groups, of which those `keep` may be chosen from whose two best add up to most.
    """
    p = {"softmax": softmax, "sigmoid": sigmoid}.get(kind, np.copy)(logits)
    score = p if select is None else p + select
    if groups > 1:
        by_group = score.reshape(len(p), groups, -1)
        best = -np.sort(-by_group, -1)[..., :2]
        taken = np.argsort(-(best[..., 0] + best[..., 1]), -1, kind="stable")[:, :keep]
        is_kept = (taken[..., None] == np.arange(groups)).any(1)
        score = np.where(is_kept[..., None], by_group, np.float32(-np.inf)).reshape(p.shape)
    experts = np.argsort(-score, -1, kind="stable")[:, :kept]
    shares = np.take_along_axis(p, experts, -1)
    if kind == "topk_softmax":
        shares = softmax(shares)
    elif normalize:
        total = np.zeros((len(p), 1))
        for rank in range(kept):
            total += shares[:, rank : rank + 1]
        shares = shares / np.maximum(total.astype(np.float32), np.float32(floor))
    return experts, shares * np.float32(scale)


def clamps(alpha: float, limit: float) -> tuple[np.float32, ...]:
    """−alpha, the most of a gate, the least and the most of what it is multiplied by."""
    one, most = np.float32(1), np.float32(limit)
    return np.float32(-alpha), most, one - most, one + most


def clamped_gate(gate_up: np.ndarray, alpha: float, limit: float) -> np.ndarray:
    """[m, 2·I] → [m, I]: g / (1 + e^(−alpha · g)) · u of g = min(gate, limit), u = up within 1 ± limit."""
    minus_alpha, most, low, high = clamps(alpha, limit)
    gate, up = np.split(gate_up, 2, axis=-1)
    gate = np.minimum(gate, most)
    active: np.ndarray = gate / (np.float32(1) + exp(gate * minus_alpha))
    return active * np.minimum(np.maximum(up, low), high)


def expert_sum(rows: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """float32 [m, kept, n], shares [m, kept] → [m, n]: their sum, in the order in which they were chosen."""
    total = np.zeros((len(rows), rows.shape[-1]))
    for rank in range(rows.shape[1]):
        total += rows[:, rank].astype(np.float64) * shares[:, rank, None]
    return total.astype(np.float32)
