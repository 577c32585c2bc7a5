"""Rotary embeddings: config.json's rope keys → how the heads of an attention turn.

A head of d elements is rotated in halves: element i with element i + d/2, by position × frequency[i]. What
does not turn has frequency 0, so a part of a head, or all of it, may stand still without a node of its own.
How frequencies are stretched to longer contexts is in rope_scalings.py.

Configs of transformers 4 have rope_theta and rope_scaling, those of 5 rope_parameters, for each type of layer
its own where they differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flatlm.export.rope_scalings import SCALINGS, Scaled
from flatlm.runtime.settings import Settings

TYPES = (*SCALINGS, "proportional")
_ALIASES = {"su": "longrope"}  # Phi-3's name of it, before it was published
_OUTER_KEYS = ("rope_theta", "partial_rotary_factor", "max_position_embeddings")


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """How the heads of an attention turn.

    frequency: float32 [d/2], scaling included; 0 where a pair stands still
    turning: elements of a head that turn, the first ones of it on disk
    factor: what cosines and sines are multiplied by; it is folded into weights
    interleaved: on disk, elements 2i and 2i + 1 are a pair, not i and i + turning/2
    name: of the node that makes the table; one for each frequency
    note: what people should know of it
    """

    frequency: np.ndarray
    turning: int
    factor: float = 1.0
    interleaved: bool = False
    name: str = "rotary"
    note: str = ""

    def order(self) -> np.ndarray:
        """Where each element of a head, as the graph has it, lies on disk: int64 [d]."""
        size, turning = 2 * len(self.frequency), self.turning
        pairs = np.arange(turning).reshape(-1, 2).T if self.interleaved else np.arange(turning).reshape(2, -1)
        rest = np.arange(turning, size).reshape(2, -1)
        return np.concatenate([pairs[0], rest[0], pairs[1], rest[1]])

    def factors(self) -> np.ndarray:
        """What each element of a head, as the graph has it, is multiplied by: float32 [d]."""
        return np.where(self.order() < self.turning, self.factor, 1).astype(np.float32)


def still(rotary: Rotary) -> Rotary:
    """Of layers without positions in a model whose others turn so: rows lie as they do on disk."""
    size = 2 * len(rotary.frequency)
    return Rotary(np.zeros(size // 2, np.float32), size, name="rotary.still")


def rotary(rope: Settings, head_size: int, context: int) -> Rotary:
    """Of `parameters`, for heads of `head_size` and texts of at most `context` tokens."""
    theta = rope.need("rope_theta", float, low=1, high=1e30)
    share = rope.get("partial_rotary_factor", float, 1.0, above=0, high=1)
    turning, kind = 2 * (int(head_size * share) // 2), rope_type(rope)
    if kind == "proportional":  # as if all turned, but only the fast ones do
        frequency = theta ** -(np.arange(0, turning, 2, dtype=np.float64) / head_size)
        scaled, turning = Scaled(frequency / rope.get("factor", float, 1.0, above=0)), head_size
    else:
        frequency = theta ** -(np.arange(0, turning, 2, dtype=np.float64) / turning)
        scaled = SCALINGS[kind](frequency, rope, context)
    whole = np.zeros(head_size // 2, np.float32)
    whole[: len(frequency)] = scaled.frequency
    return Rotary(whole, turning, scaled.factor, note=scaled.note)


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
    if original := config.values.get("original_max_position_embeddings"):
        values["original_max_position_embeddings"] = original  # Phi-3 has it outside, where it counts more
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
    """The type by its present name; `linear` with a factor of one is the default."""
    kind = rope.get("rope_type", str) or rope.get("type", str) or "default"
    if kind == "linear" and rope.get("factor", float) == 1:
        return "default"
    if kind == "yarn" and "short_factor" in rope:  # an early Phi-3
        return "longrope"
    return _ALIASES.get(kind, kind)


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
