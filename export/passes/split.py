"""Splitting: an intermediate channel of a gated MLP becomes several, so that its down weights shrink.

Small models keep a few enormous weights in `down` (8 times the largest of a usual column), some on channels
whose inputs are enormous too. One step per tensor cannot serve them and the rest. This is flattening of
weights where there is no sparse excess: rows of gate and up are repeated, and the column of `down` becomes
the pieces clip(w − clip(w, −jt, jt), −t, t), which sum to it. The function stays the same.

Inputs flatten into at most 127 columns of T. Where a channel needs more, its weights will have to grow by
max|x| / (127 T) (`smooth.Tied.relieve`), and that growth is counted here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flatlm.runtime.format.graph import Graph, Tensor

from .flatten import box_threshold
from .pieces import MAX_PIECES
from .smooth import Fold


@dataclass(frozen=True, slots=True)
class Split:
    """New channel i is piece[i] of channel[i], of width[i]; whole channels come first, in order."""

    channel: np.ndarray  # int64 [k']
    piece: np.ndarray  # int64 [k']
    width: np.ndarray  # float32 [k']


def split(maxima: np.ndarray, weight: np.ndarray, budget: float, wide: float) -> Split | None:
    """maxima [k] of |x|, weight [n, k] → the finest split that adds at most budget · k channels.

    wide: the share of channels that flattening may widen. None where nothing is gained.
    """
    k = len(maxima)
    peak = np.abs(weight).max(0)
    threshold, usual = box_threshold(maxima, wide), float(np.median(peak))
    if usual == 0:
        return None

    def copies(f: float) -> tuple[np.ndarray, np.ndarray]:
        growth = np.maximum(1, maxima / (MAX_PIECES * threshold * f))
        return np.ceil(peak * growth / (usual * f)).clip(1).astype(np.int64), usual * f / growth

    low, high = 1.0, 1e6
    for _ in range(50):
        f = float(np.sqrt(low * high))
        low, high = (low, f) if (copies(f)[0] - 1).sum() <= budget * k else (f, high)
    count, width = copies(high)
    extra = np.repeat(np.arange(k), count - 1)
    if not len(extra):
        return None
    first = np.repeat(np.cumsum(count - 1) - (count - 1), count - 1)
    piece = np.concatenate([np.zeros(k, np.int64), np.arange(len(extra)) - first + 1])
    channel = np.concatenate([np.arange(k), extra])
    widths = np.where(count > 1, width, np.inf).astype(np.float32)
    return Split(channel, piece, widths[channel])


def by_size(maxima: np.ndarray) -> Split:
    """maxima [k] → the same channels, those of the largest inputs first.

    So the channels that inputs flatten into several columns lie side by side. Kernels take columns by fours,
    and read a group again for one wide channel: scattered, 14 % wide channels lie in 40 % of the groups.
    """
    order = np.argsort(-maxima, kind="stable").astype(np.int64)
    return Split(order, np.zeros_like(order), np.full(len(order), np.inf, np.float32))


def columns(weight: np.ndarray, split: Split) -> np.ndarray:
    """weight [n, k] → [n, k']: the pieces of each column sum to it."""
    whole, width = weight[:, split.channel], split.width
    with np.errstate(invalid="ignore"):  # 0 · inf, of channels that stay whole
        low = np.where(split.piece > 0, split.piece * width, 0).astype(np.float32)
    pieces: np.ndarray = np.clip(whole - np.clip(whole, -low, low), -width, width)
    return pieces


def apply(graph: Graph, fold: Fold, split: Split) -> None:
    """Repeats rows of gate and up (`fold.source`) and splits the columns of down (`fold.linear`)."""
    rows = fold.picked(split.channel)
    for name in fold.source.inputs[1:3]:
        graph.constants[name] = Tensor.of(np.ascontiguousarray(graph.array(name)[rows]))
    name = fold.linear.inputs[1]
    graph.constants[name] = Tensor.of(columns(graph.array(name), split))
