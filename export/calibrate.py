"""What calibration text tells about a layer's inputs: maxima, a sample of rows, second moments.

The text that ships is in data/ (its sources and licences in data/README.md); a user may give another.

Legend: k inputs of a layer, m rows (tokens) of a sample, B windows, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import UsageError

WINDOW = 512  # tokens
SAMPLE = 512  # rows on which a layer's smoothing is tried
_TEXT = Path(__file__).parent / "data" / "calibration.txt"


def text(path: Path | None = None) -> str:
    """The calibration text: the given UTF-8 file, or the one that ships."""
    try:
        return (path or _TEXT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"calibration text {path or _TEXT}: {error}; give a readable UTF-8 file") from error


def windows(ids: np.ndarray, count: int, length: int = WINDOW) -> np.ndarray:
    """Token ids [N] → int64 [B, T]: at most `count` windows spread evenly over the text.

    A text shorter than one window gives one short window. UsageError below 16 tokens.
    """
    ids = np.asarray(ids, np.int64)
    if len(ids) < 16:
        raise UsageError(
            f"the calibration text has {len(ids)} tokens; at least 16 are needed, 8,000 are good"
        )
    length = min(length, len(ids))
    available = len(ids) // length
    chosen = np.linspace(0, available - 1, min(count, available)).round().astype(int)
    return ids[: available * length].reshape(available, length)[chosen]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a layer reads: the largest |x| of each channel, and some of the rows."""

    maxima: np.ndarray  # [k]
    sample: np.ndarray  # [m, k]

    def divided(self, s: np.ndarray) -> Inputs:
        return Inputs(self.maxima / s, self.sample / s)

    def picked(self, channels: np.ndarray) -> Inputs:
        return Inputs(self.maxima[channels], self.sample[:, channels])


def inputs(values: Iterable[np.ndarray]) -> Inputs:
    """Of values [B, T, k]; the sampled rows lie evenly spread."""
    rows = [x.reshape(-1, x.shape[-1]) for x in values]
    every = max(1, sum(map(len, rows)) // SAMPLE) | 1  # odd: a window's length does not divide by it
    return Inputs(channel_maxima(rows), np.concatenate([x[::every] for x in rows]))


def channel_maxima(values: Iterable[np.ndarray]) -> np.ndarray:
    """Largest |x| of each channel over values [..., k] → [k]."""
    return np.max([np.abs(x.reshape(-1, x.shape[-1])).max(0) for x in values], 0)


@dataclass(frozen=True, slots=True)
class Moments:
    """Of a layer's quantized inputs Xq beside the float model's inputs X, over all rows."""

    hessian: np.ndarray  # Xqᵀ · Xq, [k, k]; of deviations from the means if centred
    drift: np.ndarray | None  # (X − Xq)ᵀ · Xq, [k, k], likewise
    mean: np.ndarray  # of Xq, [k]
    mean_float: np.ndarray  # of X, [k]


def moments(
    quantized: Iterable[np.ndarray], floats: Iterable[np.ndarray], drift: bool, centred: bool
) -> Moments:
    """From values [B, T, k] in pairs. centred: as fits a layer whose bias takes the mean error."""
    hessian: Any = 0.0  # these are arrays from the first pair on
    cross: Any = 0.0
    total: Any = 0.0
    total_float: Any = 0.0
    count = 0
    for xq, x in zip(quantized, floats, strict=True):
        xq, x = (v.reshape(-1, v.shape[-1]) for v in (xq, x))
        hessian = hessian + xq.T @ xq
        total = total + xq.sum(0, dtype=np.float64)
        total_float = total_float + x.sum(0, dtype=np.float64)
        if drift:
            cross = cross + (x - xq).T @ xq
        count += len(x)
    mean, mean_float = total / count, total_float / count
    if centred:
        hessian = hessian - np.outer(mean, count * mean).astype(np.float32)
        cross = cross - np.outer(mean_float - mean, count * mean).astype(np.float32)
    return Moments(hessian, cross if drift else None, mean, mean_float)
