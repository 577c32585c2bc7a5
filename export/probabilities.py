"""Log probabilities of logits, and the divergence between two of them."""

from __future__ import annotations

import numpy as np


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis; a new array."""
    x = x - x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def divergence(wanted: np.ndarray, scores: np.ndarray) -> float:
    """Mean KL(wanted ‖ scores) in nats over positions; both are log probabilities [..., V]."""
    return float(np.mean(np.sum(np.exp(wanted) * (wanted - scores), -1), dtype=np.float64))
