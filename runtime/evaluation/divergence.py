"""How far a model's predictions are from a reference's, on the same text.

The windows and positions are those of `perplexity`. As of llama.cpp's `perplexity --kl-divergence`: mean,
median, percentiles and maximum of KL(reference ‖ model), and how often the likeliest token is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flatlm.runtime.errors import UsageError
from flatlm.runtime.evaluation.perplexity import ROWS, log_softmax, windows_of
from flatlm.runtime.progress import Progress

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend

BLOCK = (
    4  # rows whose probabilities are held in float64: of each, 151,936 × 8 bytes are 1.2 MB, some five times
)


@dataclass(frozen=True)
class Divergence:
    """KL in nats per token; `mean_error` is the mean's standard error."""

    mean: float
    mean_error: float
    median: float
    p90: float
    p99: float
    maximum: float
    top1_agreement: float  # share of positions with the same likeliest token
    perplexity: float
    reference_perplexity: float
    tokens: int
    windows: int


def divergence(
    reference: Backend,
    backend: Backend,
    ids: Sequence[int],
    window: int = 512,
    progress: Progress | None = None,
) -> Divergence:
    """Let both read `ids` and compare; their sequences are empty afterwards.

    Raises ContextError where a window does not fit, UsageError where `ids` do not fill one or where the
    vocabularies differ.
    """
    if reference.vocab != backend.vocab:
        raise UsageError(
            f"the reference has {reference.vocab} tokens, the model {backend.vocab}: only models of the same "
            "vocabulary can be compared"
        )
    parts = []
    cut = windows_of(ids, window, min(reference.context, backend.context))
    for i, tokens in enumerate(cut):
        parts.append(_window(reference, backend, tokens))
        if progress is not None:
            progress(i + 1, len(cut))
    reference.truncate(0)
    backend.truncate(0)
    kl, same, losses, reference_losses = (np.concatenate(column) for column in zip(*parts, strict=True))
    median, p90, p99 = np.quantile(kl, [0.5, 0.9, 0.99])
    return Divergence(
        mean=float(kl.mean()),
        mean_error=float(kl.std(ddof=1) / math.sqrt(kl.size)) if kl.size > 1 else math.inf,
        median=float(median),
        p90=float(p90),
        p99=float(p99),
        maximum=float(kl.max()),
        top1_agreement=float(same.mean()),
        perplexity=math.exp(float(losses.mean())),
        reference_perplexity=math.exp(float(reference_losses.mean())),
        tokens=kl.size,
        windows=len(cut),
    )


def _window(reference: Backend, backend: Backend, ids: np.ndarray) -> tuple[np.ndarray, ...]:
    """KL, equal likeliest token, −ln p and −ln p of the reference [T − 1] each, at positions 1 … T − 1."""
    reference.truncate(0)
    backend.truncate(0)
    rows = []
    for start in range(0, len(ids) - 1, ROWS):
        chunk = ids[start : min(start + ROWS, len(ids) - 1)]  # after the last id there is nothing to predict
        wanted, actual = (one.forward(chunk, logits=len(chunk)) for one in (reference, backend))
        targets = ids[start + 1 : start + 1 + len(chunk)]
        blocks = (slice(i, i + BLOCK) for i in range(0, len(chunk), BLOCK))
        rows += [_compare(wanted[block], actual[block], targets[block]) for block in blocks]
    return tuple(np.concatenate(column) for column in zip(*rows, strict=True))


def _compare(wanted: np.ndarray, actual: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, ...]:
    p, q = log_softmax(wanted), log_softmax(actual)
    kl = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)  # rounding can make it −1e-17
    at = np.arange(len(targets))
    return kl, wanted.argmax(axis=-1) == actual.argmax(axis=-1), -q[at, targets], -p[at, targets]
