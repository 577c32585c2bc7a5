"""Perplexity of a backend on a text.

Protocol: the text's ids without a begin token, cut into windows of 512 (a shorter remainder is dropped); each
window is read on its own, from position 0; the mean of −ln p over positions 1 … 511 of all windows, and e to
that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flatlm.runtime.errors import ContextError, UsageError
from flatlm.runtime.progress import Progress

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend

ROWS = 64  # logits kept at a time: 64 × 151,936 × 4 bytes are 39 MB, a whole window would be 311 MB


@dataclass(frozen=True)
class Perplexity:
    """`nll` in nats per token; `nll_error` is its standard error over the predicted tokens."""

    perplexity: float
    nll: float
    nll_error: float
    tokens: int  # predicted ones: windows × (window − 1)
    windows: int


def perplexity(
    backend: Backend, ids: Sequence[int], window: int = 512, progress: Progress | None = None
) -> Perplexity:
    """Measure `backend` on `ids`; its sequence is empty afterwards.

    Raises ContextError where a window does not fit the context, UsageError where `ids` do not fill one.
    """
    cut = windows_of(ids, window, backend.context)
    losses = np.empty((len(cut), window - 1))
    for i, tokens in enumerate(cut):
        losses[i] = window_nll(backend, tokens)
        if progress is not None:
            progress(i + 1, len(cut))
    backend.truncate(0)
    mean = float(losses.mean())
    error = float(losses.std(ddof=1) / math.sqrt(losses.size)) if losses.size > 1 else math.inf
    return Perplexity(math.exp(mean), mean, error, losses.size, len(cut))


def windows_of(ids: Sequence[int], window: int, context: int) -> np.ndarray:
    """`ids` as whole windows, int64 [windows, window]; raises as `perplexity` does."""
    if window > context:
        raise ContextError(f"a window of {window} tokens does not fit the context of {context}: raise --ctx")
    if len(ids) < window:
        raise UsageError(
            f"the text has {len(ids)} tokens, one window needs {window}: give more text or --window"
        )
    return np.asarray(ids[: len(ids) // window * window], np.int64).reshape(-1, window)


def window_nll(backend: Backend, ids: np.ndarray) -> np.ndarray:
    """−ln p of ids[1:] [T − 1] float64, each given the ones before it in the window."""
    backend.truncate(0)
    losses = []
    for start in range(0, len(ids), ROWS):
        chunk = ids[start : start + ROWS]
        targets = ids[start + 1 : start + 1 + len(chunk)]
        logits = backend.forward(chunk, logits=len(chunk))[: len(targets)]
        losses.append(-log_softmax(logits)[np.arange(len(targets)), targets])
    return np.concatenate(losses)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """ln of the probabilities of logits [m, V], float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    logs: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs
