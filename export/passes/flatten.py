"""Flattening of activations: one step for a tensor whose channels differ by orders of magnitude.

A channel whose largest input is m becomes p = ceil(m / T) pieces, each of which holds T; its weights serve
them all. The pieces sum to clip(x, −pT, pT), rounded: one integer X with |X| ≤ p · levels. Two int8 digits,
X = 128·H + L, hold it whatever p is, so a channel of many pieces costs one more column (docs/format.md).
By token, T is as large as the token needs: max_c |x[c]| / p[c].

These rules are flatlm's own (only the FlattenQuant paper's abstract was available).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flatlm.export.calibrate import Inputs
from flatlm.export.ops.flat_linear import flat_linear, token_linear, token_steps
from flatlm.export.ops.function import Operation

from .pieces import MAX_PIECES, pieces_by_token


@dataclass(frozen=True, slots=True)
class Flattening:
    """How the input of one linear layer becomes integers."""

    threshold: float  # T, in units of the (smoothed) input
    levels: int  # 127 for 8 bits, 7 for 4
    pieces: np.ndarray  # int64 [k], of each channel
    by_token: bool = False  # every token has a step of its own, and `threshold` is only what calibration saw

    @property
    def inverse_scale(self) -> np.float32:
        return np.float32(self.levels / self.threshold)

    @property
    def step(self) -> float:
        """What one integer step is worth: the inverse of the float32 that the kernel multiplies by."""
        return 1.0 / float(self.inverse_scale)

    @property
    def limit(self) -> np.ndarray:
        """float32 [k]: the largest |X| of each channel."""
        return (self.pieces * self.levels).astype(np.float32)

    @property
    def wide(self) -> int:
        """Channels of more than one piece."""
        return int((self.pieces > 1).sum())

    @property
    def extra(self) -> float:
        """Columns that a second int8 digit adds, as a share of the channels: onnxruntime's work."""
        return float(np.mean(self.limit > 127))

    @property
    def double_groups(self) -> int:
        """Groups of 4 columns in which a channel's X needs two int8 digits."""
        return len(np.unique(np.flatnonzero(self.limit > 127) // 4))


def flatten(maxima: np.ndarray, levels: int, wide: float) -> Flattening:
    """Channel maxima [k], and the share of channels that may have several pieces → how to flatten.

    T is never so small that a channel would need more than 127 pieces: `Tied.relieve` sees to those.
    """
    maxima = np.asarray(maxima, np.float64)
    threshold = max(box_threshold(maxima, wide), float(maxima.max(initial=0)) / MAX_PIECES)
    pieces = np.ceil(maxima / threshold * (1 - 1e-9)).clip(1, MAX_PIECES).astype(np.int64)
    return Flattening(threshold, levels, pieces)


def flatten_by_token(inputs: Inputs, levels: int, wide: float) -> Flattening:
    """What a layer reads, and the share of groups of columns that may be wide → how to flatten by token."""
    pieces = pieces_by_token(inputs.sample, wide)
    return Flattening(float((inputs.maxima / pieces).max(initial=0)), levels, pieces, by_token=True)


def box_threshold(maxima: np.ndarray, wide: float) -> float:
    """T = Q3 + β · IQR of the channel maxima [k] (a box plot's fence) with the least β ≥ 0 for which at most
    wide · k channels lie beyond it. 1 where all maxima are 0."""
    top = float(np.max(maxima, initial=0.0))
    if top == 0.0:
        return 1.0
    q1, q3 = np.quantile(maxima, [0.25, 0.75])
    beyond = np.sort(maxima)[::-1][
        min(int(wide * len(maxima)), len(maxima) - 1)
    ]  # the largest that must not be wide
    beta = max(0.0, (beyond - q3) / (q3 - q1)) if q3 > q1 else 0.0
    return float(max(q3 + beta * (q3 - q1), beyond))


def quantize(x: np.ndarray, flattening: Flattening) -> np.ndarray:
    """float32 [..., k] → X, integers held as float32, exactly as the runtime computes them."""
    steps = np.rint(x * flattening.inverse_scale)
    return np.clip(steps, -flattening.limit, flattening.limit, out=steps)


def rounded(x: np.ndarray, flattening: Flattening) -> np.ndarray:
    """float32 [..., k] → what is left of it: X times its step."""
    if flattening.by_token:
        steps, step = token_steps(x, flattening.limit, flattening.levels)
        values: np.ndarray = np.multiply(steps, step, out=steps)
        return values
    return quantize(x, flattening) * np.float32(flattening.step)


@dataclass(frozen=True, slots=True)
class FlatProduct:
    """A linear layer in integers."""

    integers: np.ndarray  # [n, k]
    steps: np.ndarray  # float64 [n], of the weights
    bias: np.ndarray  # float32 [n]
    flattening: Flattening  # of its inputs

    @property
    def scale(self) -> np.ndarray:
        """float32 [n]: the weights' steps, times the activations' where there is one for all tokens."""
        step = 1.0 if self.flattening.by_token else self.flattening.step
        return (step * self.steps).astype(np.float32)

    def operation(self) -> Operation:
        """What it computes, in float32."""
        integers, flat = self.integers.astype(np.float32), self.flattening
        if flat.by_token:
            return token_linear(integers, self.scale, self.bias, flat.limit, flat.levels)
        return flat_linear(integers, self.scale, self.bias, flat.inverse_scale, flat.limit)
