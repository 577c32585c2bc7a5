"""Folds that names have: how a place's weight lies in what the checkpoint stores.

    "attention.q": Name("self_attn.qkv_proj", "attn_qkv", (of_qkv("q"),))

A bias that lies beside a matrix is folded with it, as its only column.
"""

from __future__ import annotations

import numpy as np

from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.names import Fold
from flatlm.export.weights import Weight


def of_qkv(part: str) -> Fold:
    """Queries, keys or values of rows that hold all of q, then of k, then of v."""

    def fold(weight: Weight, c: DecoderConfig) -> Weight:
        q, kv = c.num_heads * c.head_size, c.kv_num_heads * c.head_size
        first, count = {"q": (0, q), "k": (q, kv), "v": (q + kv, kv)}[part]
        return weight.require((q + 2 * kv, *weight.shape[1:])).rows(slice(first, first + count))

    return fold


def by_head(part: str) -> Fold:
    """Queries, keys or values of rows that hold q, k and v of one head after those of another."""

    def fold(weight: Weight, c: DecoderConfig) -> Weight:
        heads, rest, at = c.num_heads, weight.shape[1:], "qkv".index(part)
        apart = weight.reshaped(heads, 3, c.head_size, *rest)
        chosen = apart.mapped(lambda w: w[:, at], (heads, c.head_size, *rest))
        return chosen.reshaped(heads * c.head_size, *rest)

    return fold


def half(number: int) -> Fold:
    """The first or the second half of the rows."""

    def fold(weight: Weight, c: DecoderConfig) -> Weight:
        rows = weight.shape[0] // 2
        return weight.require((2 * rows, *weight.shape[1:])).rows(slice(number * rows, (number + 1) * rows))

    return fold


def half_of_experts(number: int) -> Fold:
    """The first or the second half of the rows of each expert, [E, n, k]."""

    def fold(weight: Weight, c: DecoderConfig) -> Weight:
        experts, rows, *rest = weight.shape
        own = slice(number * (rows // 2), (number + 1) * (rows // 2))
        weight.require((experts, 2 * (rows // 2), *rest))
        return weight.mapped(lambda w: w[:, own], (experts, rows // 2, *rest))

    return fold


def alternate_of_experts(number: int) -> Fold:
    """Every other output of each expert, from the first or second on: of [E, k, n] or of biases [E, n]."""

    def fold(weight: Weight, c: DecoderConfig) -> Weight:
        experts, *rest, outputs = weight.shape
        chosen = weight.require((experts, *rest, outputs // 2 * 2))
        return chosen.mapped(lambda w: w[..., number::2].swapaxes(1, -1), (experts, outputs // 2, *rest))

    return fold


def transposed_of_experts(weight: Weight, c: DecoderConfig) -> Weight:
    """[E, k, n] → [E, n, k]; biases stay as they are."""
    if len(weight.shape) < 3:
        return weight
    experts, k, n = weight.shape
    return weight.mapped(lambda w: w.swapaxes(1, 2), (experts, n, k))


def flat(weight: Weight, c: DecoderConfig) -> Weight:
    """[1, n] → [n]."""
    return weight.reshaped(weight.shape[-1])


def transposed(weight: Weight, c: DecoderConfig) -> Weight:
    """Conv1D's matrices are [k, n]; a vector stays as it is."""
    return weight.transposed()


def squeezed(weight: Weight, c: DecoderConfig) -> Weight:
    """Taps of a depthwise convolution: [c, 1, L] → [c, L]; a vector stays as it is."""
    return weight if len(weight.shape) < 3 else weight.reshaped(weight.shape[0], weight.shape[-1])


def of_gated_heads(number: int) -> Fold:
    """Queries (0) or gates (1) of rows that hold both for each head, one after the other."""

    def fold(weight: Weight, c: DecoderConfig) -> Weight:
        rows = np.arange(c.num_heads * 2 * c.head_size).reshape(c.num_heads, 2, -1)
        return weight.require((rows.size, *weight.shape[1:])).rows(rows[:, number].reshape(-1))

    return fold
