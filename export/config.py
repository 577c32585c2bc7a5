"""config.json of a decoder-only model → the numbers the blocks need, or a refusal that names the feature."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from flatlm.export import rope
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import refused
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.names import HEAD
from flatlm.export.rope import Rotary
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.settings import Settings

if TYPE_CHECKING:
    from flatlm.export.sources.source import Source

# Of anything counted: products of a few stay far from what an integer holds.
_SIZE = {"low": 1, "high": 1 << 28}
_LARGEST_HEAD = 1 << 16
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")


def settings_of(config: Settings, architecture: Architecture) -> Settings:
    """What config.json says to the architecture: absent keys have its defaults."""
    values = architecture.as_new({**architecture.defaults, **config.values})
    return dataclasses.replace(config, values=values)


def read_config(
    source: Source, config: Settings, architecture: Architecture, context: int | None = None
) -> DecoderConfig:
    """Of `settings_of` a decoder's config.json, for texts of at most `context` tokens.

    Raises UnsupportedError with every feature flatlm lacks, SourceError for impossible values.
    """
    if features := unsupported_features(config, architecture):
        raise UnsupportedError(f"{source.name} cannot be exported: {'; '.join(features)}")
    key = architecture.key
    heads = config.need(key("num_attention_heads"), int, **_SIZE)
    hidden = config.need(key("hidden_size"), int, **_SIZE)
    kv_heads = config.get(key("num_key_value_heads"), int, heads, low=1)
    head_size = config.get(key("head_dim"), int, hidden // heads, low=1)
    if heads % kv_heads or head_size % 2 or not 2 <= head_size <= _LARGEST_HEAD:
        raise SourceError(
            f"{source.name}: config.json has {heads} attention heads, {kv_heads} key/value heads of size "
            f"{head_size}; the second must divide the first and the size be even, at most {_LARGEST_HEAD}"
        )
    longest = config.need(key("max_position_embeddings"), int, **_SIZE)
    context = min(context or longest, longest)
    return DecoderConfig(
        architecture=config.need("model_type", str),
        vocab_size=config.need(key("vocab_size"), int, **_SIZE),
        hidden_size=hidden,
        intermediate_size=config.need(key("intermediate_size"), int, **_SIZE),
        layers=config.need(key("num_hidden_layers"), int, **_SIZE),
        num_heads=heads,
        kv_num_heads=kv_heads,
        head_size=head_size,
        context_length=context,
        act=architecture.acts[config.get(key("hidden_act"), str, "silu")],
        epsilon=config.get(key("rms_norm_eps"), float, 1e-6, above=0, high=1),
        tied=_tied(source, config, architecture),
        rotaries=_rotaries(config, architecture, head_size, context),
    )


def unsupported_features(config: Settings, architecture: Architecture) -> list[str]:
    """Each feature the config asks for that the blocks do not have, with its value."""
    found, obeyed, key = [], architecture.obeyed, architecture.key
    if (act := config.get(key("hidden_act"), str, "silu")) not in architecture.acts:
        known = ", ".join(architecture.acts)
        found.append(f"{key('hidden_act')} {act!r} (flatlm has {known} in this architecture)")
    whole = rope.parameters(config)
    kinds = rope.by_layer_type(whole)
    for one in kinds.values() if architecture.rope_by_layer_type and kinds else (whole,):
        if (kind := rope.rope_type(one)) not in rope.TYPES:
            found.append(f"rope_scaling type {kind!r} (flatlm has {', '.join(rope.TYPES)})")
        if (
            share := one.get("partial_rotary_factor", float, 1.0)
        ) != 1 and "partial_rotary_factor" not in obeyed:
            found.append(f"partial_rotary_factor {share}")
    if not architecture.rope_by_layer_type:
        found += [f"rope parameters of their own for {kind}" for kind in kinds]
    if "sliding_window" not in obeyed and (window := _window(config)):
        found.append(f"sliding_window of {window} tokens")
    others = {*config.each("layer_types", str)} - architecture.layer_types
    found += [f"layers of type {kind}" for kind in sorted(others)]
    found += [
        f"mixture of experts ({name} {config[name]!r:.60})"
        for name in _EXPERT_KEYS
        if config.values.get(name) and name not in obeyed
    ]
    found += [
        f"{key} {config[key]!r:.60} (flatlm has {value!r})"
        for key, value in architecture.only.items()
        if config.values.get(key, value) not in (value, None)
    ]
    return found + refused(config.values, obeyed | {*architecture.keys.values(), *architecture.only})


def _rotaries(
    config: Settings, architecture: Architecture, head_size: int, context: int
) -> dict[str, Rotary]:
    """By type of layer where config.json has them so, under "" otherwise."""
    whole = rope.parameters(config)
    kinds = rope.by_layer_type(whole) if architecture.rope_by_layer_type else {}
    return {
        kind: dataclasses.replace(
            rope.rotary(one, head_size, context),
            name=f"rotary.{kind}" if kind else "rotary",
            interleaved=architecture.interleaved,
        )
        for kind, one in (kinds or {"": whole}).items()
    }


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


def _tied(source: Source, config: Settings, architecture: Architecture) -> bool:
    """Whether the head is the embedding: the config says so, and no other head is stored."""
    names = architecture.names
    head, embedding = (f"{names.stored(place)}.weight" for place in (HEAD, "embedding"))
    stored = head in source.names()
    if not config.get("tie_word_embeddings", bool, not stored):
        return False
    return not stored or source.same(embedding, head)
