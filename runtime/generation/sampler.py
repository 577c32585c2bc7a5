"""From logits to the next token.

A sampler takes logits [V] float32 and the history, ids so far, and gives the next id. The steps and their
order are those of transformers: biases, penalties, temperature, top-k, top-p, min-p; then one draw over the
ids left. Equal logits are never left to the order of a sort.

A sampler keeps no state: the noise of a draw belongs to (seed, position, id). So the same logits at the same
position give the same id whatever was drawn before, and models that share a seed draw the same id as often as
their distributions agree, which is what makes drafting invisible under sampling too (docs/drafting.md).
"""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from flatlm.runtime.errors import BackendError
from flatlm.runtime.options import SamplingOptions

Bits = TypeVar("Bits", int, np.ndarray)  # 64 of them, or an array of uint64
Law = tuple[np.ndarray, np.ndarray]  # ids that may follow, ascending; their probabilities, float64, sum 1

COLD = 1e-6  # temperatures below it are greedy: the division would only overflow
BLOCK = 64  # values under one maximum in `likeliest`
MASK = 2**64 - 1
ROUNDING = 1e-6  # relative, more than that of a weight
FIRST_CANDIDATES = 256  # top-p looks at this many first, at 8 times more while they do not hold the share


class Sampler(Protocol):
    """The id after `history`, given logits [V] of all ids; or [n] of some, `ids` [n], ascending."""

    def __call__(self, logits: np.ndarray, history: Sequence[int], ids: np.ndarray | None = None) -> int: ...


def make_sampler(options: SamplingOptions) -> Sampler:
    """A sampler whose noise is that of `options.seed`; -1 takes the system's entropy."""
    seed = options.seed if options.seed >= 0 else secrets.randbits(63)

    def sample(logits: np.ndarray, history: Sequence[int], ids: np.ndarray | None = None) -> int:
        return race(next_law(logits, history, options, ids), noise_key(seed, len(history)))

    def take_likeliest(logits: np.ndarray, history: Sequence[int], ids: np.ndarray | None = None) -> int:
        place = greedy(adjusted(logits, history, options, ids))
        return place if ids is None else int(ids[place])

    return take_likeliest if is_greedy(options) else sample


def next_law(
    logits: np.ndarray, history: Sequence[int], options: SamplingOptions, ids: np.ndarray | None = None
) -> Law:
    """What a sampler of `options` draws from; one id where it is greedy. `ids`: see Sampler."""
    logits = adjusted(logits, history, options, ids)
    if is_greedy(options):
        places, shares = np.array([greedy(logits)]), np.ones(1)
    else:
        places, shares = distribution(logits, options)
    return places if ids is None else ids[places], shares


def is_greedy(options: SamplingOptions) -> bool:
    """Whether `options` leave nothing to chance."""
    return options.temp < COLD or options.top_k == 1


def greedy(logits: np.ndarray) -> int:
    """The likeliest id of logits [V], the lowest where several are equal."""
    best = int(np.argmax(logits))
    demand_numbers(logits[best])
    return best


def recent(history: Sequence[int], last: int) -> Sequence[int]:
    """The last `last` ids; -1: all of them."""
    return history if last < 0 else history[len(history) - min(last, len(history)) :]


def adjusted(
    logits: np.ndarray, history: Sequence[int], options: SamplingOptions, ids: np.ndarray | None = None
) -> np.ndarray:
    """`logits` (of `ids`: see Sampler) with the biases of `options`, which are of ids alone
    (token_options.py), then less for what was said lately.
    """
    if options.logit_bias:
        places, amounts = _bias_arrays(options.logit_bias)
        if ids is not None:
            places, there = find(ids, places)
            places, amounts = places[there], amounts[there]
        logits = logits.copy()
        logits[places] += amounts
    if options.repeat_penalty == 1.0 and options.presence_penalty == options.frequency_penalty == 0.0:
        return logits
    return penalize(
        logits,
        recent(history, options.repeat_last_n),
        options.repeat_penalty,
        ids,
        options.presence_penalty,
        options.frequency_penalty,
    )


@functools.lru_cache(maxsize=64)
def _bias_arrays(biases: tuple[tuple[int | str, float], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Ids, ascending, and what is added to each in all."""
    total: dict[int, float] = {}
    for token, amount in biases:
        assert isinstance(token, int), "texts are turned into ids where an answer begins"
        total[token] = total.get(token, 0.0) + amount
    order = sorted(total)
    return np.array(order, np.int64), np.array([total[token] for token in order], np.float32)


def penalize(
    logits: np.ndarray,
    last: Sequence[int],
    penalty: float,
    ids: np.ndarray | None = None,
    presence: float = 0.0,
    frequency: float = 0.0,
) -> np.ndarray:
    """`logits` (of `ids`: see Sampler) with those of `last` divided by `penalty`, or multiplied where
    negative; then less `presence`, and `frequency` for each time that one is among them. A new array.
    """
    if not len(last):
        return logits
    seen, counts = np.unique(np.asarray(last, np.int64), return_counts=True)
    if ids is not None:
        places, there = find(ids, seen)
        seen, counts = places[there], counts[there]
    result = logits.copy()
    values = logits[seen]
    values = np.where(values > 0, values / penalty, values * penalty)
    result[seen] = values - (counts * frequency + presence)
    return result


def distribution(logits: np.ndarray, options: SamplingOptions) -> Law:
    """The ids that may follow, ascending, and their probabilities (float64, sum 1). Needs temp > 0."""
    best = int(np.argmax(logits))
    highest = float(logits[best])
    demand_numbers(highest)
    if _alone(logits, highest, options):
        return np.array([best]), np.ones(1)
    ids = likeliest(logits, options.top_k or len(logits))
    weights = np.exp((logits[ids].astype(np.float64) - highest) / options.temp)  # the best weighs 1
    total = float(weights.sum())
    kept = np.flatnonzero(weights >= options.min_p)  # relative to the best, so it may go before top-p
    if options.top_p < 1.0:
        kept = kept[_within(weights[kept], options.top_p * total)]
    ids, weights = ids[kept], weights[kept]
    return ids, weights / weights.sum()


def _alone(logits: np.ndarray, highest: float, options: SamplingOptions) -> bool:
    """Whether min-p surely drops all but the likeliest, as for most tokens of a confident model: one look at
    the logits then replaces the sorting.
    """
    if options.min_p == 0:
        return False
    below = options.temp * -math.log(options.min_p)
    least = highest - below - ROUNDING * (options.temp + below + abs(highest))
    return bool(np.count_nonzero(logits >= least) == 1)


def find(ids: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of `wanted` in `ids`, ascending and not empty, and which of them are there."""
    places = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return places, ids[places] == wanted


def race(law: Law, key: int) -> int:
    """An id drawn from `law`: the first to arrive of exponential clocks, one per id, ticking at its share.

    The clock of an id depends on `key` and the id alone. Two laws with one key give the same id with
    probability at least (1 - d) / (1 + d), d their total variation distance (Daliri, Musco, Suresh 2024,
    arXiv 2408.07978: Gumbel sampling).
    """
    ids, shares = law
    if len(ids) == 1:
        return int(ids[0])
    with np.errstate(divide="ignore"):  # a share of 0 never arrives
        return int(ids[np.argmin(-np.log(uniforms(ids, key)) / shares)])


def noise_key(seed: int, position: int) -> int:
    """The key of one position's noise."""
    return mixed((seed + mixed(position)) & MASK)


def uniforms(ids: np.ndarray, key: int) -> np.ndarray:
    """A number in (0, 1) for each of `ids`, that of its place in the stream of `key`."""
    bits = mixed(mixed(ids.astype(np.uint64)) ^ np.uint64(key))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def mixed(x: Bits) -> Bits:
    """64 bits to 64 bits, each depending on all: splitmix64 (Steele, Lea, Flood 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def draw(law: Law, uniform: float) -> int:
    """The id at `uniform` (in [0, 1)) of the cumulated probabilities of `law`."""
    ids, shares = law
    total = np.cumsum(shares)
    place = int(np.searchsorted(total, uniform * total[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])


def likeliest(values: np.ndarray, k: int) -> np.ndarray:
    """The places of the k greatest values and of any equal to the k-th, ascending.

    The k-th greatest of the maxima of blocks is not above the k-th greatest value: a block whose maximum is
    below it needs no look (25 µs instead of 4 ms for 40 of 151,936). A block is every n-th value, so that
    its maximum is taken together with its neighbours'.
    """
    if k >= len(values):
        return np.arange(len(values))
    blocks = len(values) // BLOCK
    if blocks < k:
        return np.flatnonzero(values >= _kth(values, k))
    whole = blocks * BLOCK
    maxima = values[:whole].reshape(BLOCK, blocks).max(axis=0)
    columns = np.flatnonzero(maxima >= _kth(maxima, k))
    places = np.append(np.arange(0, whole, blocks)[:, None] + columns, np.arange(whole, len(values)))
    found = values[places]
    return places[found >= _kth(found, k)]


def _kth(values: np.ndarray, k: int) -> float:
    kth: float = np.partition(values, len(values) - k)[len(values) - k]
    return kth


def _within(weights: np.ndarray, share: float) -> np.ndarray:
    """The places of the fewest greatest weights that sum to `share` (at least one; all where it is more)."""
    count = FIRST_CANDIDATES
    while True:
        first = likeliest(weights, count)
        first = first[np.argsort(-weights[first], kind="stable")]  # equal ones by id
        reached = np.cumsum(weights[first]) >= share
        if reached.any():
            return np.sort(first[: int(np.argmax(reached)) + 1])
        if len(first) == len(weights):
            return np.sort(first)
        count *= 8


def demand_numbers(value: float) -> None:
    """Raise where the greatest logit is no number; NaN anywhere makes it NaN."""
    if not math.isfinite(value):
        raise BackendError(
            f"the model's logits contain {value}: the artifact or the backend is broken; try flatlm verify"
        )
