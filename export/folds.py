"""Folds that names have: how a place's weight lies in what the checkpoint stores."""

from __future__ import annotations

import numpy as np

from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.names import Fold
from flatlm.export.weights import Weight


def plus_one(weight: Weight, c: DecoderConfig) -> Weight:
    """Norms that are stored as their distance from one."""
    return weight.plus(1)


def squeezed(weight: Weight, c: DecoderConfig) -> Weight:
    """Taps of a depthwise convolution: [c, 1, L] → [c, L]; a vector stays as it is."""
    return weight if len(weight.shape) < 3 else weight.reshaped(weight.shape[0], weight.shape[-1])


def of_gated_heads(number: int) -> Fold:
    """Queries (0) or gates (1) of rows that hold both for each head, one after the other."""

    def fold(weight: Weight, c: DecoderConfig) -> Weight:
        rows = np.arange(c.num_heads * 2 * c.head_size).reshape(c.num_heads, 2, -1)
        return weight.require((rows.size, *weight.shape[1:])).rows(rows[:, number].reshape(-1))

    return fold
