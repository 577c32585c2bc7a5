"""The bigram table of a text: what Max-Gram falls back on where the conversation repeats nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bigrams(ids: Sequence[int], vocab: int) -> np.ndarray:
    """ids of a text → int32 [vocab]: the id that follows each most often, of several the lowest; -1: none."""
    text = np.asarray(ids, np.int64)
    pairs, counts = np.unique(text[:-1] * vocab + text[1:], return_counts=True)
    first, second = np.divmod(pairs, vocab)
    order = np.lexsort((-second, counts, first))  # of each first id, the pair to take comes last
    table = np.full(vocab, -1, np.int32)
    table[first[order]] = second[order]
    return table
