"""Rotary embeddings: config.json's rope keys → how the heads of an attention turn.

A head of d elements is rotated in halves: element i with element i + d/2, by position × frequency[i]. What
does not turn has frequency 0, so a part of a head, or all of it, may stand still without a node of its own.

Configs of transformers 4 have rope_theta and rope_scaling, those of 5 rope_parameters, for each type of layer
its own where they differ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flatlm.runtime.settings import Settings

TYPES = ("default", "llama3", "frequency_factors")
_SLOWEST = 1e-6  # and 1e6: rope factors beyond are no model's, and no float32 overflows within
_LONGEST = 1 << 28  # tokens
_OUTER_KEYS = (
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "max_position_embeddings",
)


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """How the heads of an attention turn.

    frequency: float32 [d/2], scaling included; 0 where a pair stands still
    turning: elements of a head that turn, the first ones of it on disk
    factor: what cosines and sines are multiplied by; it is folded into weights
    interleaved: on disk, elements 2i and 2i + 1 are a pair, not i and i + turning/2
    name: of the node that makes the table; one for each frequency
    """

    frequency: np.ndarray
    turning: int
    factor: float = 1.0
    interleaved: bool = False
    name: str = "rotary"

    def order(self) -> np.ndarray:
        """Where each element of a head, as the graph has it, lies on disk: int64 [d]."""
        size, turning = 2 * len(self.frequency), self.turning
        pairs = np.arange(turning).reshape(-1, 2).T if self.interleaved else np.arange(turning).reshape(2, -1)
        rest = np.arange(turning, size).reshape(2, -1)
        return np.concatenate([pairs[0], rest[0], pairs[1], rest[1]])

    def factors(self) -> np.ndarray:
        """What each element of a head, as the graph has it, is multiplied by: float32 [d]."""
        return np.where(self.order() < self.turning, self.factor, 1).astype(np.float32)


def still(head_size: int) -> Rotary:
    """Of layers without positions."""
    return Rotary(np.zeros(head_size // 2, np.float32), head_size, name="rotary.still")


def rotary(rope: Settings, head_size: int) -> Rotary:
    """Of `parameters`, for heads of `head_size`."""
    theta = rope.need("rope_theta", float, low=1, high=1e30)
    share = rope.get("partial_rotary_factor", float, 1.0, above=0, high=1)
    turning = 2 * (int(head_size * share) // 2)
    frequency = theta ** -(np.arange(0, turning, 2, dtype=np.float64) / turning)
    kind = rope_type(rope)
    if kind == "frequency_factors":
        factors = rope.each("factors", float, low=_SLOWEST, high=1 / _SLOWEST)
        if len(factors) != len(frequency):
            raise rope.wrong("factors", f"{len(frequency)} numbers, one for two elements of a head")
        frequency = frequency / np.asarray(factors, np.float64)
    elif kind == "llama3":
        frequency = _llama3(frequency, rope)
    whole = np.zeros(head_size // 2, np.float32)
    whole[: len(frequency)] = frequency
    return Rotary(whole, turning)


def _llama3(frequency: np.ndarray, rope: Settings) -> np.ndarray:
    """Llama 3.1: by the turns a wave makes in the original context, fewer than low_freq_factor are slowed by
    `factor`, more than high_freq_factor are kept, the ones between go over linearly."""
    original = _original(rope)
    low = rope.need("low_freq_factor", float, low=0, high=1 / _SLOWEST)
    high = rope.need("high_freq_factor", float, above=low, high=1 / _SLOWEST)
    factor = rope.need("factor", float, low=_SLOWEST, high=1 / _SLOWEST)
    turns = original * frequency / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return frequency * (keep + (1 - keep) / factor)


def _original(rope: Settings) -> int:
    """Tokens of the context that the model was first trained on."""
    longest = rope.get("max_position_embeddings", int, low=1, high=_LONGEST)
    original = rope.get("original_max_position_embeddings", int, longest, low=1, high=_LONGEST)
    return original or rope.need("original_max_position_embeddings", int)


def parameters(config: Settings) -> Settings:
    """One view of rope_theta and rope_scaling (transformers 4) or rope_parameters (transformers 5).

    Where both objects are there the first stands, alone, as in transformers 5.
    """
    scaling, given = config.table("rope_scaling"), config.table("rope_parameters")
    if len(scaling):
        given = scaling
    elif not len(given):
        given = dataclasses.replace(config, values={})
    outer = {key: config[key] for key in _OUTER_KEYS if key in config}
    values = {"rope_theta": 10000.0, **_present(outer), **_present(given.values)}
    return dataclasses.replace(given, values=values)


def by_layer_type(whole: Settings) -> dict[str, Settings]:
    """Of `parameters`: type of layer → its own; empty where all have the same."""
    shared = {key: value for key, value in whole.values.items() if not isinstance(value, Mapping)}
    return {
        key: dataclasses.replace(table, values={**shared, **_present(table.values)})
        for key in whole
        if isinstance(whole[key], Mapping)
        for table in (whole.table(key),)
    }


def rope_type(rope: Settings) -> str:
    """`linear` with a factor of one is the default."""
    kind = rope.get("rope_type", str) or rope.get("type", str) or "default"
    return "default" if kind == "linear" and rope.get("factor", float) == 1 else kind


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
