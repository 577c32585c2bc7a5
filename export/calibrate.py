"""What calibration text tells about a layer's inputs: maxima, a sample of rows, second moments.

The text that ships is in data/ (its sources and licences in data/README.md); a user may give another.

Legend: k inputs of a layer, m rows (tokens) of a sample, B windows, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flatlm.export import ops
from flatlm.export.parallel import each
from flatlm.runtime.errors import UsageError
from flatlm.runtime.format.graph import Graph
from flatlm.runtime.format.widths import POSITION_IDS

WINDOW = 512  # tokens
SAMPLE = 512  # rows on which a layer's smoothing is tried
_TEXT = Path(__file__).parent / "data" / "calibration.txt"


def text(path: Path | None = None) -> str:
    """The calibration text: the given UTF-8 file, or the one that ships."""
    try:
        return (path or _TEXT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"calibration text {path or _TEXT}: {error}; give a readable UTF-8 file") from error


def longest(graph: Graph) -> int:
    """Tokens of a window: no more than a table of positions has rows for."""
    positions = any(POSITION_IDS in node.inputs for node in ops.tables(graph.nodes))
    return min(WINDOW, int(graph.metadata["context_length"])) if positions else WINDOW


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
    windows: np.ndarray = ids[: available * length].reshape(available, length)[chosen]
    return windows


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
        largest: np.ndarray = np.maximum(rows.max(0), -rows.min(0))
        return largest

    maxima: np.ndarray = np.max(each(part, values), 0)
    return maxima


@dataclass(frozen=True, slots=True)
class Moments:
    """Of a layer's inputs X, weighted by token."""

    hessian: np.ndarray  # Xᵀ · X, [k, k]
    mean: np.ndarray  # [k]
    rows: int  # m


def moments(x: np.ndarray, centred: bool) -> Moments:
    """x [m, k], which is used up. centred: as fits a layer whose bias takes the mean error."""
    weights = token_weights(x)
    mean = weights @ x
    if centred:
        x -= mean
    x *= np.sqrt(weights)[:, None]
    hessian = x.T @ x  # one call: BLAS sees that it is symmetric, and does half
    return Moments(hessian, mean, len(x))


def mean(values: Iterable[np.ndarray]) -> np.ndarray:
    """Of each channel over values [B, T, k], weighted by token → [k]."""
    rows = [x.reshape(-1, x.shape[-1]) for x in values]
    weights = np.split(token_weights(*rows), np.cumsum([len(x) for x in rows])[:-1])
    weighted: np.ndarray = np.sum([some @ x for some, x in zip(weights, rows, strict=True)], 0)
    return weighted


def token_weights(*rows: np.ndarray) -> np.ndarray:
    """1 / (|x|² + its median) of each token of x [m, k], over their sum: none decides for all others.

    Qwen2.5-Coder-1.5B's first token has 450 times the usual |x|² before `down`, but also a residual stream
    so large that a next layer hardly sees its errors.
    """
    sizes = np.concatenate([np.einsum("mk,mk->m", x, x) for x in rows])
    weights = 1 / (sizes + np.median(sizes) + np.float32(1e-30))
    shares: np.ndarray = weights / weights.sum()
    return shares
