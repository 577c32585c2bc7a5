"""config.json of a decoder-only model → the numbers the blocks need, or a refusal that names the feature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flatlm.export.sources.source import Source
from flatlm.runtime.errors import SourceError, UnsupportedError

_ROPE_TYPES = ("default", "llama3", "frequency_factors")
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
    epsilon: float
    tied: bool
    inverse_frequency: np.ndarray

    def metadata(self) -> dict[str, str]:
        """What the artifact tells about the model's shape."""
        keys = "context_length vocab_size hidden_size layers num_heads kv_num_heads head_size architecture"
        return {key: str(getattr(self, key)) for key in keys.split()}


def read_config(source: Source) -> DecoderConfig:
    """Raises UnsupportedError with every feature flatlm lacks, SourceError for impossible values."""
    config = source.config
    if features := unsupported_features(config):
        raise UnsupportedError(f"{source.name} cannot be exported: {'; '.join(features)}")
    heads, hidden = _size(source, "num_attention_heads"), _size(source, "hidden_size")
    kv_heads = config.get("num_key_value_heads") or heads
    head_size = config.get("head_dim") or hidden // heads
    if heads % kv_heads or head_size % 2:
        raise SourceError(
            f"{source.name}: config.json has {heads} attention heads, {kv_heads} key/value heads of size "
            f"{head_size}; the second must divide the first and the size be even"
        )
    context = _size(source, "max_position_embeddings")
    return DecoderConfig(
        architecture=config["model_type"],
        vocab_size=_size(source, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_size(source, "intermediate_size"),
        layers=_size(source, "num_hidden_layers"),
        num_heads=heads,
        kv_num_heads=kv_heads,
        head_size=head_size,
        context_length=context,
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        tied=bool(config.get("tie_word_embeddings", "lm_head.weight" not in source.names())),
        inverse_frequency=inverse_frequency(_rope(config), head_size, context),
    )


def unsupported_features(config: Mapping[str, Any]) -> list[str]:
    """Each feature the config asks for that the blocks do not have, with its value."""
    found = []
    if (act := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        found.append(f"hidden_act {act!r} (flatlm has silu)")
    if (rope := _rope_type(_rope(config))) not in _ROPE_TYPES:
        found.append(f"rope_scaling type {rope!r} (flatlm has default and llama3)")
    if (share := _rope(config).get("partial_rotary_factor", 1.0)) != 1.0:
        found.append(f"partial_rotary_factor {share}")
    if window := _window(config):
        found.append(f"sliding_window of {window} tokens")
    found += [f"mixture of experts ({key} {config[key]})" for key in _EXPERT_KEYS if config.get(key)]
    return found


def inverse_frequency(rope: Mapping[str, Any], head_size: int, context: int) -> np.ndarray:
    """theta^(-2i / d) for i < d/2, scaled as the rope type says; float32 [d / 2]."""
    frequency = float(rope["rope_theta"]) ** -(np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    kind = _rope_type(rope)
    if kind == "frequency_factors":
        frequency = frequency / np.asarray(rope["factors"], np.float64)
    elif kind == "llama3":
        frequency = _llama3(frequency, rope, context)
    return frequency.astype(np.float32)


def _llama3(frequency: np.ndarray, rope: Mapping[str, Any], context: int) -> np.ndarray:
    """Llama 3.1: by the turns a wave makes in the original context, fewer than low_freq_factor are slowed by
    `factor`, more than high_freq_factor are kept, the ones between go over linearly."""
    original = rope.get("original_max_position_embeddings", context)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = original * frequency / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return frequency * (keep + (1 - keep) / rope["factor"])


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """One view of rope_theta and rope_scaling (transformers 4) or rope_parameters (transformers 5)."""
    rope = {"rope_theta": config.get("rope_theta", 10000.0)}
    rope |= {key: config[key] for key in ("partial_rotary_factor",) if key in config}
    given = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    return rope | {key: value for key, value in given.items() if value is not None}


def _rope_type(rope: Mapping[str, Any]) -> str:
    return rope.get("rope_type") or rope.get("type") or "default"


def _window(config: Mapping[str, Any]) -> int:
    """The sliding window's tokens if a layer uses one that is shorter than the context, else 0."""
    window = config.get("sliding_window")
    if not window or window >= config.get("max_position_embeddings", 0):
        return 0
    if (kinds := config.get("layer_types")) is not None:
        return window if "sliding_attention" in kinds else 0
    in_reach = config.get("max_window_layers", 0) < config.get("num_hidden_layers", 0)
    return window if config.get("use_sliding_window", config["model_type"] != "qwen2") and in_reach else 0


def _size(source: Source, key: str) -> int:
    value = source.config.get(key)
    if not isinstance(value, int) or value < 1:
        raise SourceError(f"{source.name}: config.json has {key} = {value!r}, expected a positive integer")
    return value
