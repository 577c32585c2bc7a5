"""config.json of a decoder-only model → the numbers the blocks need, or a refusal that names the feature."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flatlm.export import names
from flatlm.export.config_keys import refused
from flatlm.export.sources.source import Source
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.settings import Settings

_ROPE_TYPES = ("default", "llama3", "frequency_factors")
SILU = {"silu": "silu", "swish": "silu"}  # hidden_act → the act of `Gated`
_LARGEST_SIZE = 1 << 28  # of anything counted: products of a few stay far from what an integer holds
_LARGEST_HEAD = 1 << 16
_SLOWEST = 1e-6  # and 1e6: rope factors beyond are no model's, and no float32 overflows within
_OUTER_ROPE_KEYS = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes of a decoder. `inverse_frequency` is float32 [head_size / 2], rope scaling included."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    num_heads: int
    kv_num_heads: int
    head_size: int
    context_length: int
    act: str  # of `Gated`
    epsilon: float
    tied: bool
    inverse_frequency: np.ndarray

    def metadata(self) -> dict[str, str]:
        """What the artifact tells about the model's shape."""
        keys = "context_length vocab_size hidden_size layers num_heads kv_num_heads head_size architecture"
        return {key: str(getattr(self, key)) for key in keys.split()}


def read_config(source: Source, acts: Mapping[str, str], obeyed: frozenset[str]) -> DecoderConfig:
    """`acts` and `obeyed` are what the architecture says (archs/).

    Raises UnsupportedError with every feature flatlm lacks, SourceError for impossible values.
    """
    config = source.config
    if features := unsupported_features(config, acts, obeyed):
        raise UnsupportedError(f"{source.name} cannot be exported: {'; '.join(features)}")
    heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    kv_heads = config.get("num_key_value_heads", int, heads, low=1)
    head_size = config.get("head_dim", int, hidden // heads, low=1)
    if heads % kv_heads or head_size % 2 or not 2 <= head_size <= _LARGEST_HEAD:
        raise SourceError(
            f"{source.name}: config.json has {heads} attention heads, {kv_heads} key/value heads of size "
            f"{head_size}; the second must divide the first and the size be even, at most {_LARGEST_HEAD}"
        )
    context = _size(config, "max_position_embeddings")
    return DecoderConfig(
        architecture=config.need("model_type", str),
        vocab_size=_size(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_size(config, "intermediate_size"),
        layers=_size(config, "num_hidden_layers"),
        num_heads=heads,
        kv_num_heads=kv_heads,
        head_size=head_size,
        context_length=context,
        act=acts[config.get("hidden_act", str, "silu")],
        epsilon=config.get("rms_norm_eps", float, 1e-6, above=0, high=1),
        tied=_tied(source),
        inverse_frequency=inverse_frequency(_rope(config), head_size, context),
    )


def unsupported_features(config: Settings, acts: Mapping[str, str], obeyed: frozenset[str]) -> list[str]:
    """Each feature the config asks for that the blocks do not have, with its value."""
    found = []
    if (act := config.get("hidden_act", str, "silu")) not in acts:
        found.append(f"hidden_act {act!r} (flatlm has {', '.join(acts)} in this architecture)")
    rope = _rope(config)
    if (kind := _rope_type(rope)) not in _ROPE_TYPES:
        found.append(f"rope_scaling type {kind!r} (flatlm has default and llama3)")
    if (share := rope.get("partial_rotary_factor", float, 1.0)) != 1.0:
        found.append(f"partial_rotary_factor {share}")
    found += [f"rope parameters of their own for {key}" for key in rope if isinstance(rope[key], dict)]
    if "sliding_window" not in obeyed and (window := _window(config)):
        found.append(f"sliding_window of {window} tokens")
    others = {*config.each("layer_types", str)} - {"full_attention", "sliding_attention"}
    found += [f"layers of type {kind}" for kind in sorted(others)]
    found += [
        f"mixture of experts ({key} {config[key]!r:.60})" for key in _EXPERT_KEYS if config.values.get(key)
    ]
    return found + refused(config.values, obeyed)


def inverse_frequency(rope: Settings, head_size: int, context: int) -> np.ndarray:
    """theta^(-2i / d) for i < d/2, scaled as the rope type says; float32 [d / 2]."""
    theta = rope.need("rope_theta", float, low=1, high=1e30)
    frequency = theta ** -(np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    kind = _rope_type(rope)
    if kind == "frequency_factors":
        factors = rope.each("factors", float, low=_SLOWEST, high=1 / _SLOWEST)
        if len(factors) != len(frequency):
            raise rope.wrong("factors", f"{len(frequency)} numbers, one for two elements of a head")
        frequency = frequency / np.asarray(factors, np.float64)
    elif kind == "llama3":
        frequency = _llama3(frequency, rope, context)
    return frequency.astype(np.float32)


def _llama3(frequency: np.ndarray, rope: Settings, context: int) -> np.ndarray:
    """Llama 3.1: by the turns a wave makes in the original context, fewer than low_freq_factor are slowed by
    `factor`, more than high_freq_factor are kept, the ones between go over linearly."""
    original = rope.get("original_max_position_embeddings", int, context, low=1, high=_LARGEST_SIZE)
    low = rope.need("low_freq_factor", float, low=0, high=1 / _SLOWEST)
    high = rope.need("high_freq_factor", float, above=low, high=1 / _SLOWEST)
    factor = rope.need("factor", float, low=_SLOWEST, high=1 / _SLOWEST)
    turns = original * frequency / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return frequency * (keep + (1 - keep) / factor)


def _rope(config: Settings) -> Settings:
    """One view of rope_theta and rope_scaling (transformers 4) or rope_parameters (transformers 5).

    Where both objects are there the first stands, alone, as in transformers 5.
    """
    scaling, parameters = config.table("rope_scaling"), config.table("rope_parameters")
    outer = {key: config[key] for key in _OUTER_ROPE_KEYS if key in config}
    given = (
        scaling if len(scaling) else parameters if len(parameters) else dataclasses.replace(config, values={})
    )
    values = {"rope_theta": 10000.0, **_present(outer), **_present(given.values)}
    return dataclasses.replace(given, values=values)


def _rope_type(rope: Settings) -> str:
    kind = rope.get("rope_type", str) or rope.get("type", str) or "default"
    return "default" if kind == "linear" and rope.get("factor", float) == 1 else kind


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _window(config: Settings) -> int:
    """The sliding window's tokens if a layer uses one that is shorter than the context, else 0."""
    window = config.get("sliding_window", int, 0, low=0)
    if not window or window >= config.get("max_position_embeddings", int, 0):
        return 0
    if kinds := config.each("layer_types", str):
        return window if "sliding_attention" in kinds else 0
    in_reach = config.get("max_window_layers", int, 0) < config.get("num_hidden_layers", int, 0)
    used = config.get("use_sliding_window", bool, config.get("model_type", str) != "qwen2")
    return window if used and in_reach else 0


def _tied(source: Source) -> bool:
    """Whether the head is the embedding: the config says so, and no other head is stored."""
    head, embedding = (f"{names.outer(place)}.weight" for place in ("head", "embedding"))
    stored = head in source.names()
    if not source.config.get("tie_word_embeddings", bool, not stored):
        return False
    return not stored or source.same(embedding, head)


def _size(config: Settings, key: str) -> int:
    return config.need(key, int, low=1, high=_LARGEST_SIZE)
