"""How rotary frequencies are stretched to contexts longer than those of training, by rope_type.

Each takes the plain frequencies, float64 [turning/2], the rope parameters and the longest text in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from flatlm.runtime.settings import Settings

_SLOWEST = 1e-6  # and 1e6: rope factors beyond are no model's, and no float32 overflows within
_LONGEST = 1 << 28  # tokens
_ANY = {"low": _SLOWEST, "high": 1 / _SLOWEST}


@dataclass(frozen=True, slots=True)
class Scaled:
    """`factor`: what cosines and sines are multiplied by. `note`: what people should know."""

    frequency: np.ndarray
    factor: float = 1.0
    note: str = ""


def _default(frequency: np.ndarray, rope: Settings, context: int) -> Scaled:
    return Scaled(frequency)


def _linear(frequency: np.ndarray, rope: Settings, context: int) -> Scaled:
    return Scaled(frequency / rope.need("factor", float, **_ANY))


def _dynamic(frequency: np.ndarray, rope: Settings, context: int) -> Scaled:
    """NTK: with `alpha` (Hunyuan) another base; else one that grows with texts beyond
    max_position_embeddings, which an artifact does not take."""
    alpha, turning = rope.get("alpha", float, **_ANY), 2 * len(frequency)
    if not alpha:
        return Scaled(frequency)
    return Scaled(frequency * alpha ** (-np.arange(len(frequency)) * 2 / max(turning - 2, 1)))


def _factors(frequency: np.ndarray, rope: Settings, context: int) -> Scaled:
    """GGUF's: the divisors of all frequencies, whatever they came from."""
    return Scaled(frequency / _each(rope, "factors", len(frequency)))


def _llama3(frequency: np.ndarray, rope: Settings, context: int) -> Scaled:
    """Llama 3.1: by the turns a wave makes in the original context, fewer than low_freq_factor are slowed by
    `factor`, more than high_freq_factor are kept, the ones between go over linearly."""
    low = rope.need("low_freq_factor", float, low=0, high=1 / _SLOWEST)
    high = rope.need("high_freq_factor", float, above=low, high=1 / _SLOWEST)
    factor = rope.need("factor", float, **_ANY)
    turns = _original(rope) * frequency / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return Scaled(frequency * (keep + (1 - keep) / factor))


def _yarn(frequency: np.ndarray, rope: Settings, context: int) -> Scaled:
    """YaRN (arXiv 2309.00071): slow waves are slowed by `factor`, fast ones kept, a ramp between: from the
    wave that turns beta_fast times in the original context to the one that turns beta_slow times."""
    theta, original = rope.need("rope_theta", float, above=1), _original(rope)
    factor = rope.get("factor", float, _growth(rope), **_ANY)
    fast, slow = (
        rope.get(key, float, usual, **_ANY) for key, usual in (("beta_fast", 32.0), ("beta_slow", 1.0))
    )
    turning = 2 * len(frequency)
    first, last = (
        turning * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow)
    )
    if rope.get("truncate", bool, True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, turning - 1)
    ramp = (np.arange(len(frequency)) - first) / (last - first or 0.001)
    slowed = np.clip(ramp, 0, 1)
    return Scaled(frequency * (1 - slowed + slowed / factor), _yarn_factor(rope, factor))


def _yarn_factor(rope: Settings, factor: float) -> float:
    """Of cosines and sines: given, or by the logarithm of the stretch."""
    given = rope.get("attention_factor", float, 0.0, **_ANY)
    if given:
        return given

    def grown(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    over, under = rope.get("mscale", float, 0.0), rope.get("mscale_all_dim", float, 0.0)
    return grown(over) / grown(under) if over and under else grown(1)


def _longrope(frequency: np.ndarray, rope: Settings, context: int) -> Scaled:
    """LongRoPE (arXiv 2402.13753): a list of divisors for texts within the original context, one for longer.

    A model is exported with one of them: the longest text says which.
    """
    original = _original(rope)
    kind = "long_factor" if context > original else "short_factor"
    factor = _growth(rope) if rope.get("factor", float) is None else rope.need("factor", float, **_ANY)
    usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    note = f"rotation for texts of up to {context} tokens (longrope's {kind})"
    if kind == "long_factor":
        note += f"; the authors' for texts of up to {original} tokens needs --context {original}"
    factors = _each(rope, kind, len(frequency))
    return Scaled(frequency / factors, rope.get("attention_factor", float, usual, **_ANY), note)


def _original(rope: Settings) -> int:
    """Tokens of the context that the model was first trained on."""
    longest = rope.get("max_position_embeddings", int, low=1, high=_LONGEST)
    original = rope.get("original_max_position_embeddings", int, longest, low=1, high=_LONGEST)
    return original or rope.need("original_max_position_embeddings", int)


def _growth(rope: Settings) -> float:
    return rope.get("max_position_embeddings", int, _original(rope), low=1, high=_LONGEST) / _original(rope)


def _each(rope: Settings, key: str, count: int) -> np.ndarray:
    factors = rope.each(key, float, **_ANY)
    if len(factors) != count:
        raise rope.wrong(key, f"{count} numbers, one for two elements of a head that turn")
    return np.asarray(factors, np.float64)


SCALINGS: Mapping[str, Callable[[np.ndarray, Settings, int], Scaled]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "frequency_factors": _factors,
}
