"""What calibration text tells about a layer's inputs: maxima, a sample of rows, second moments.

The text that ships is in data/ (its sources and licences in data/README.md); a user may give another.

Legend: k inputs of a layer, m rows (tokens) of a sample, B windows, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.parallel import each
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

    def part(x: np.ndarray) -> np.ndarray:
        rows = x.reshape(-1, x.shape[-1])
        return np.maximum(rows.max(0), -rows.min(0))

    return np.max(each(part, values), 0)


@dataclass(frozen=True, slots=True)
class Moments:
    """Of a layer's quantized inputs Xq beside the float model's inputs X, over all rows m."""

    hessian: np.ndarray  # Xqᵀ · Xq, [k, k]; of deviations from the means if centred
    pull: np.ndarray | None  # W · (X − Xq)ᵀ · Xq, [n, k], likewise
    mean: np.ndarray  # of Xq, [k]
    mean_float: np.ndarray  # of X, [k]


def moments(
    quantized: np.ndarray,
    floats: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray] | None,
    weight: np.ndarray,
    pull: bool,
    centred: bool,
) -> Moments:
    """quantized [m, k], which is used up; floats: values [B, T, k], together as many rows; weight [n, k].
    outputs: floats · weightᵀ [B, T, n], plus anything that is the same for all; or None.

    centred: as fits a layer whose bias takes the mean error.
    """
    rows = [x.reshape(-1, x.shape[-1]) for x in floats]
    mean = quantized.mean(0, dtype=np.float64)
    mean_float = np.sum([x.sum(0, dtype=np.float64) for x in rows], 0) / len(quantized)
    if centred:
        quantized -= mean.astype(np.float32)
    hessian = quantized.T @ quantized  # one call: BLAS sees that it is symmetric, and does half
    pulled = None
    if pull:
        n, k = weight.shape
        if outputs and centred and 2 * len(quantized) * n < k * (len(quantized) + n):
            pulled = _pull_by_outputs(quantized, [y.reshape(-1, n) for y in outputs], weight)
        else:
            pulled = _pull_by_inputs(quantized, rows, mean_float * centred, weight)
    return Moments(hessian, pulled, mean, mean_float)


def _pull_by_outputs(quantized: np.ndarray, outputs: list[np.ndarray], weight: np.ndarray) -> np.ndarray:
    """(W · (X − Xq)ᵀ) · Xq [n, k], for few outputs, as of `down`: W · Xᵀ is there already.

    What all outputs have in common falls out, since the columns of centred Xq sum to zero.
    """
    result, at = np.zeros(weight.shape, np.float32), 0
    common = np.mean([y.mean(0, dtype=np.float64) for y in outputs], 0).astype(np.float32)
    for y in outputs:
        own = quantized[at : at + len(y)]
        drift = own @ weight.T
        np.subtract(y - common, drift, out=drift)
        result += drift.T @ own
        at += len(y)
    return result


def _pull_by_inputs(
    quantized: np.ndarray, rows: list[np.ndarray], mean_float: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """W · ((X − Xq)ᵀ · Xq) [n, k], for many outputs, as of `gate_up`."""
    k, at = weight.shape[1], 0
    result = np.zeros((k, k), np.float32)
    for x in rows:
        own = quantized[at : at + len(x)]
        drift = x - mean_float.astype(np.float32)
        drift -= own
        result += drift.T @ own
        at += len(x)
    return weight @ result
