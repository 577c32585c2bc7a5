"""From logits to the next token.

A sampler is a function (logits [V] float32, history: ids so far) -> id. The steps and their order are those
of transformers: repetition penalty, temperature, top-k, top-p, min-p; then one draw. Tokens are ordered by
logit, equal ones by id, so a seed gives the same answer on every machine with the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from runtime.errors import BackendError
from runtime.options import SamplingOptions

Sampler = Callable[[np.ndarray, Sequence[int]], int]

FIRST_CANDIDATES = (
    256  # top-p looks at this many first and at 8 times more as long as they do not hold the share
)


def make_sampler(options: SamplingOptions) -> Sampler:
    """A sampler with its own random stream (PCG64 from `options.seed`; -1 takes the system's entropy)."""
    random = np.random.Generator(np.random.PCG64(None if options.seed < 0 else options.seed))

    def sample(logits: np.ndarray, history: Sequence[int]) -> int:
        logits = penalize(logits, recent(history, options.repeat_last_n), options.repeat_penalty)
        if options.temp == 0.0 or options.top_k == 1:
            return greedy(logits)
        ids, shares = distribution(logits, options)
        return draw(ids, shares, float(random.random()))

    return sample


def greedy(logits: np.ndarray) -> int:
    """The likeliest id of logits [V], the lowest where several are equal."""
    best = int(np.argmax(logits))
    _demand_numbers(logits[best])
    return best


def recent(history: Sequence[int], last: int) -> Sequence[int]:
    """The last `last` ids; -1: all of them."""
    return history if last < 0 else history[len(history) - min(last, len(history)) :]


def penalize(logits: np.ndarray, ids: Sequence[int], penalty: float) -> np.ndarray:
    """logits [V] with those of `ids` divided by `penalty`, or multiplied where negative; a new array."""
    if penalty == 1.0 or not len(ids):
        return logits
    seen = np.unique(np.asarray(ids, np.int64))
    result = logits.copy()
    values = logits[seen]
    result[seen] = np.where(values > 0, values / penalty, values * penalty)
    return result


def distribution(logits: np.ndarray, options: SamplingOptions) -> tuple[np.ndarray, np.ndarray]:
    """The ids that may follow, likeliest first, and their probabilities (float64, sum 1). Needs temp > 0."""
    highest = float(logits.max())
    _demand_numbers(highest)
    scaled = (logits.astype(np.float64) - highest) / options.temp  # ≤ 0, the best is 0
    size = len(scaled)
    kept = _likeliest(scaled, options.top_k) if 0 < options.top_k < size else np.arange(size)
    if options.min_p > 0.0:  # a bound relative to the best: it commutes with top-p
        bound = math.log(options.min_p)
        candidates = kept[scaled[kept] >= bound]
    else:
        candidates = kept
    if options.top_p < 1.0:
        candidates = _share(scaled, candidates, float(np.exp(scaled[kept]).sum()), options.top_p)
    else:
        candidates = _ordered(scaled, candidates)
    shares = np.exp(scaled[candidates])
    return candidates, shares / shares.sum()


def draw(ids: np.ndarray, shares: np.ndarray, uniform: float) -> int:
    """The id at `uniform` (in [0, 1)) of the cumulated probabilities."""
    total = np.cumsum(shares)
    place = int(np.searchsorted(total, uniform * total[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])


def _likeliest(scaled: np.ndarray, k: int) -> np.ndarray:
    """The ids of the k greatest values and of any equal to the k-th: ties are not left to the partition."""
    bound = np.partition(scaled, len(scaled) - k)[len(scaled) - k]
    return np.flatnonzero(scaled >= bound)


def _ordered(scaled: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """`ids` (ascending) by falling value, equal ones by rising id."""
    return ids[np.argsort(-scaled[ids], kind="stable")]


def _share(scaled: np.ndarray, candidates: np.ndarray, mass: float, top_p: float) -> np.ndarray:
    """The fewest likeliest of `candidates` that hold the share `top_p` of `mass`, ordered; at least one."""
    count = FIRST_CANDIDATES
    while True:
        first = candidates[_likeliest(scaled[candidates], count)] if count < len(candidates) else candidates
        first = _ordered(scaled, first)
        reached = np.cumsum(np.exp(scaled[first])) >= top_p * mass
        if reached.any():
            return first[: int(np.argmax(reached)) + 1]
        if len(first) == len(candidates):
            return first
        count *= 8


def _demand_numbers(value: float) -> None:
    if not math.isfinite(value):
        raise BackendError(
            f"the model's logits contain {value}: the artifact or the backend is broken; try flatlm verify"
        )
