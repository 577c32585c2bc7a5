"""config.json from a GGUF file's metadata.

Every key of the file's architecture is either obeyed, known to change nothing in a model of ours, or at the
value that changes nothing; any other is refused by name and value, because llama.cpp reads it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flatlm.export.config_keys import words
from flatlm.export.names import NAMES
from flatlm.runtime.errors import UnsupportedError
from flatlm.runtime.settings import Settings

_SIZE = {"low": 1, "high": 1 << 28}
_OBEYED = words("""
    embedding_length feed_forward_length block_count context_length
    attention.head_count attention.head_count_kv attention.key_length attention.value_length
    attention.layer_norm_rms_epsilon attention.scale attention.sliding_window
    rope.dimension_count rope.freq_base rope.scaling.type rope.scaling.factor rope.scale_linear
    expert_count
""")
# The embedding has the vocabulary's size; yarn and experts are refused as such; nothing is pooled here.
_HARMLESS = words("""
    vocab_size tensor_data_layout pooling_type attention.layer_norm_epsilon
    expert_used_count expert_feed_forward_length expert_weights_norm
    rope.scaling.original_context_length rope.scaling.finetuned rope.scaling.yarn_log_multiplier
    rope.scaling.yarn_ext_factor rope.scaling.yarn_attn_factor
    rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
""")


def config_of(metadata: Settings, architecture: str, tensors: Collection[str], vocab: int) -> dict[str, Any]:
    """The config, without the head's tie and the rotary factors, which stand in tensors.

    Raises SourceError for impossible values, UnsupportedError for keys that flatlm does not obey.
    """
    facts = _of_architecture(metadata, architecture)
    heads, hidden = (facts.need(key, int, **_SIZE) for key in ("attention.head_count", "embedding_length"))
    head_size = facts.get("attention.key_length", int, hidden // heads, **_SIZE)
    if refused := _refused(facts, head_size):
        raise UnsupportedError(f"{metadata.place} cannot be exported: {'; '.join(refused)}")
    config = {
        "model_type": architecture,
        "hidden_size": hidden,
        "intermediate_size": facts.need("feed_forward_length", int, **_SIZE),
        "num_hidden_layers": facts.need("block_count", int, **_SIZE),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.get("attention.head_count_kv", int, heads, **_SIZE),
        "head_dim": head_size,
        "partial_rotary_factor": facts.get("rope.dimension_count", int, head_size) / max(head_size, 1),
        "max_position_embeddings": facts.need("context_length", int, **_SIZE),
        "vocab_size": vocab,
        "rms_norm_eps": _decimal(facts.need("attention.layer_norm_rms_epsilon", float, above=0)),
        "rope_theta": _decimal(facts.get("rope.freq_base", float, 10000.0, above=0)),
        "hidden_act": "silu",
        "attention_bias": f"{NAMES.of('attention.q', 0).hf}.bias" in tensors,
        "mlp_bias": f"{NAMES.of('mlp.gate', 0).hf}.bias" in tensors,
        "num_experts": facts.get("expert_count", int, 0),
    }
    if window := facts.get("attention.sliding_window", int, 0):
        config |= {"use_sliding_window": True, "sliding_window": window}
    return config


def token_id(metadata: Settings, key: str, tokens: int) -> int | None:
    """A token's id; None where there is none, which −1, 4294967295 or any id out of range says too."""
    number = metadata.get(f"tokenizer.ggml.{key}_token_id", int)
    return number if number is not None and 0 <= number < tokens else None


def _of_architecture(metadata: Settings, architecture: str) -> Settings:
    """The architecture's own keys, without their prefix; equal numbers, one a layer, are one number."""
    start = f"{architecture}."
    values = {key.removeprefix(start): metadata[key] for key in metadata if key.startswith(start)}
    for key, value in values.items():
        if not isinstance(value, list) or not value or any(type(one) not in (int, float) for one in value):
            continue
        if all(one == value[0] for one in value):
            values[key] = value[0]
        elif key in _OBEYED:
            raise UnsupportedError(
                f"{metadata.place} has {start}{key} = {value!r:.80}; flatlm's layers have the same sizes"
            )
    return Settings(values, metadata.place, metadata.error, start)


def _refused(facts: Settings, head_size: int) -> list[str]:
    """What the file asks for and flatlm does not have."""
    found = []
    factor = facts.get("rope.scaling.factor", float)
    factor = facts.get("rope.scale_linear", float, 0.0) if factor is None else factor
    kind = facts.get("rope.scaling.type", str, "linear")  # llama.cpp's default; factor 0 or 1 scales nothing
    if kind != "none" and (kind != "linear" or factor not in (0, 1)):
        found.append(f"rope scaling {kind!r} with factor {factor:g}")
    if facts.get("attention.value_length", int, head_size) != head_size:
        found.append(f"values of another size ({facts['attention.value_length']}) than keys ({head_size})")
    scale = facts.get("attention.scale", float, 0.0)
    if scale and abs(scale * head_size**0.5 - 1) > 1e-6:
        found.append(f"attention.scale {scale:g}")
    known = _OBEYED | _HARMLESS
    return found + [
        f"{facts.within}{key} {value!r:.60}"
        for key, value in facts.values.items()
        if key not in known and not _is_neutral(key, value)
    ]


def _is_neutral(key: str, value: Any) -> bool:
    if key == "attention.causal":
        return value is True
    one = key.endswith(("scale", "factor"))
    return value in (0, "", [], *((1,) if one else ())) and value is not True


def _decimal(value: float) -> float:
    """Stored as float32: the decimal that was meant, 1e-05 and not 9.99999974e-06."""
    return float(f"{value:.7g}")
