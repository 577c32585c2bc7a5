"""Pieces for a step per token: which channels have several, and how many.

A token's step is max_c |x[c]| / p[c] over its levels, so the channels of one piece should not decide it. The
kernels read a group of 4 columns twice, whatever its pieces: the budget counts groups, and the channels of
a group once chosen get as many pieces as the sums have room for.

Groups are chosen greedily on a sample, those first whose absence lowers the mean square of the tokens' steps
most, a token's size being that of its root mean square. Beside a choice by the channels' maxima, as a static
step needs it, tokens of enormous inputs (the first of a sequence) decide nothing for the others: in
SmolLM2-135M the KL that 8-bit activations cause is half as large with as many wide channels
(docs/log/quantization.md).
"""

from __future__ import annotations

import numpy as np

GROUP = 4  # columns that the kernels multiply at a time
ROUNDS = 12  # of choosing; each takes the best groups of what is left
ROWS = 256  # of the sample
MAX_PIECES = 127  # so that X, of p · 127 steps, is two int8 digits
SUM = 2**31 - 1  # largest sum of X · W


def pieces_by_token(sample: np.ndarray, share: float) -> np.ndarray:
    """sample float32 [m, k] of a layer's inputs, the share of groups that may be wide → int64 [k]."""
    k = sample.shape[1]
    wide = np.repeat(_choose(relative(sample), share) if share < 1 else np.ones(-(-k // GROUP), bool), GROUP)
    return np.where(wide[:k], room(k, int(wide[:k].sum())), 1)


def room(k: int, wide: int) -> int:
    """How many pieces `wide` of k channels may have, so that no sum of X · W leaves int32."""
    return min(MAX_PIECES, max(1, (SUM // (127 * 127) - (k - wide)) // max(1, wide)))


def importance(sample: np.ndarray) -> np.ndarray:
    """How much each channel decides the tokens' steps [k]: by it, channels that may be sorted are."""
    squares: np.ndarray = np.einsum("mk,mk->k", *[relative(sample) ** 4] * 2)
    return squares


def relative(sample: np.ndarray) -> np.ndarray:
    """|x| of at most ROWS tokens, each over its root mean square. [m, k]"""
    rows = np.abs(sample[:: max(1, len(sample) // ROWS)])
    shares: np.ndarray = rows / np.sqrt(np.mean(np.square(rows), 1, keepdims=True) + 1e-30)
    return shares


def _choose(sizes: np.ndarray, share: float) -> np.ndarray:
    """Which groups are wide, bool [groups]."""
    m, k = sizes.shape
    count = -(-k // GROUP)
    narrow = np.zeros((m, count * GROUP), np.float32)
    narrow[:, :k] = sizes
    narrow = narrow.reshape(m, count, GROUP).max(2)
    chosen, left = np.zeros(count, bool), int(share * count)
    for i in range(ROUNDS):
        first = narrow.argmax(1)
        gain = np.bincount(first, narrow[np.arange(m), first] ** 2, count)
        best = np.argsort(-gain, kind="stable")[: -(-left // (ROUNDS - i))]
        best = best[gain[best] > 0]
        chosen[best] = True
        narrow[:, best] = 0
        left -= len(best)
    return chosen
