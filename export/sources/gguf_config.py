"""config.json from a GGUF file's metadata.

Every key of the file's architecture is either obeyed, known to change nothing in a model of ours, or at the
value that changes nothing; any other is refused by name and value, because llama.cpp reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.sources.gguf_archs import GgufArchitecture, decimal
from flatlm.export.windows import FULL, SLIDING
from flatlm.runtime.errors import UnsupportedError
from flatlm.runtime.settings import Settings

_SIZE = {"low": 1, "high": 1 << 28}
_OBEYED = words("""
    embedding_length feed_forward_length block_count context_length
    attention.head_count attention.head_count_kv attention.key_length attention.value_length
    attention.layer_norm_rms_epsilon attention.layer_norm_epsilon attention.scale attention.sliding_window
    attention.sliding_window_pattern rope.freq_base_swa
    rope.dimension_count rope.freq_base rope.scaling.type rope.scaling.factor rope.scale_linear
    rope.scaling.original_context_length rope.scaling.attn_factor rope.scaling.yarn_attn_factor
    rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
    expert_count
""")
# The embedding has the vocabulary's size; experts are refused as such; nothing is pooled here.
_HARMLESS = words("""
    vocab_size tensor_data_layout pooling_type rope.scaling.finetuned
    expert_used_count expert_feed_forward_length expert_weights_norm
""")
# Tensors that say how heads turn: the divisors of frequencies, of all texts or of short and long ones.
FREQUENCIES = {
    "rope_freqs.weight": "factors",
    "rope_factors_long.weight": "long_factor",
    "rope_factors_short.weight": "short_factor",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What the metadata and the tensors of a file say, beside the architecture that it is of."""

    metadata: Settings
    read_as: GgufArchitecture
    architecture: Architecture
    tensors: Mapping[str, tuple[int, ...]]  # by Hugging Face name
    factors: Mapping[str, np.ndarray]  # of FREQUENCIES

    def has(self, place: str) -> bool:
        """Whether the first layer has a bias there."""
        return f"{self.architecture.names.stored(place, 0, gguf=True)}.bias" in self.tensors

    def config(self, name: str) -> dict[str, Any]:
        """The config of a file of the GGUF architecture `name`, without the head's tie.

        Raises SourceError for impossible values, UnsupportedError for keys that flatlm does not obey.
        """
        facts, read_as = _of_architecture(self.metadata, name, self.read_as), self.read_as
        heads, hidden = (
            facts.need(key, int, **_SIZE) for key in ("attention.head_count", "embedding_length")
        )
        head_size = facts.get("attention.key_length", int, hidden // heads, **_SIZE)
        if refused := _refused(facts, head_size, read_as):
            raise UnsupportedError(f"{self.metadata.place} cannot be exported: {'; '.join(refused)}")
        rms, plain = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
        epsilon = facts.need(plain if rms not in facts and plain in facts else rms, float, above=0)
        embedding = self.tensors[f"{self.architecture.names.stored('embedding', gguf=True)}.weight"]
        config = {
            "hidden_size": hidden,
            "intermediate_size": facts.need("feed_forward_length", int, **_SIZE),
            "num_hidden_layers": facts.need("block_count", int, **_SIZE),
            "num_attention_heads": heads,
            "num_key_value_heads": max(facts.one_or_more("attention.head_count_kv", int, low=0) or [heads]),
            "head_dim": head_size,
            "max_position_embeddings": facts.need("context_length", int, **_SIZE),
            "vocab_size": embedding[0],
            "rms_norm_eps": decimal(epsilon),
            "hidden_act": read_as.act,
            **_window(facts),
            **self._rope(facts, head_size),
            **self._biases(),
        }
        if "expert_count" not in read_as.keys:
            config["num_experts"] = facts.get("expert_count", int, 0)
        for key, ours in read_as.keys.items():
            if key in facts:
                config[ours] = decimal(facts[key]) if isinstance(facts[key], float) else facts[key]
        config |= read_as.more(facts, config)
        return {self.architecture.key(key): value for key, value in config.items()} | {
            "model_type": read_as.model_type
        }

    def _rope(self, facts: Settings, head_size: int) -> dict[str, Any]:
        """Keys of rope; where types of layers may have their own, those with a window have no scaling."""
        found, usual = _rope(facts, head_size, self.factors), self.read_as.local_theta
        if not self.architecture.rope_by_layer_type:
            return found
        theta = facts.get("rope.freq_base_swa", float, usual or found["rope_theta"], above=0)
        sliding = {"rope_type": "default", "rope_theta": decimal(theta)}
        return {"rope_parameters": {SLIDING: sliding, FULL: found["rope_parameters"]}}

    def _biases(self) -> dict[str, bool]:
        """Under each key by which some config says that there are biases."""
        qkv, out, mlp = (self.has(place) for place in ("attention.q", "attention.out", "mlp.down"))
        return {
            "attention_bias": qkv,
            "qkv_bias": qkv,
            "attention_out_bias": out,
            "mlp_bias": mlp,
            "use_bias": qkv and mlp,
            "use_qkv_bias": qkv,
        }


def token_id(metadata: Settings, key: str, tokens: int) -> int | None:
    """A token's id; None where there is none, which −1, 4294967295 or any id out of range says too."""
    number = metadata.get(f"tokenizer.ggml.{key}_token_id", int)
    return number if number is not None and 0 <= number < tokens else None


def _of_architecture(metadata: Settings, name: str, read_as: GgufArchitecture) -> Settings:
    """The architecture's own keys, without their prefix; equal numbers, one a layer, are one number."""
    start = f"{name}."
    values = {key.removeprefix(start): metadata[key] for key in metadata if key.startswith(start)}
    for key, value in values.items():
        if not isinstance(value, list) or not value or any(type(one) not in (int, float) for one in value):
            continue
        if all(one == value[0] for one in value):
            values[key] = value[0]
        elif key in _OBEYED and key not in read_as.obeyed:
            raise UnsupportedError(
                f"{metadata.place} has {start}{key} = {value!r:.80}; flatlm's layers have the same sizes"
            )
    return Settings(values, metadata.place, metadata.error, start)


def _window(facts: Settings) -> dict[str, Any]:
    """Keys of a window, null where there is none, and which layers have it where the file says."""
    window = facts.get("attention.sliding_window", int, 0)
    if not window:
        return {"sliding_window": None}
    found: dict[str, Any] = {"use_sliding_window": True, "sliding_window": window}
    pattern = facts.values.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        found["layer_types"] = [SLIDING if one else FULL for one in pattern]
    elif pattern is not None:
        found["sliding_window_pattern"] = facts.need("attention.sliding_window_pattern", int, low=1)
    return found


def _rope(facts: Settings, head_size: int, factors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """rope_theta, and rope_parameters as transformers 5 has them."""
    theta = decimal(facts.get("rope.freq_base", float, 10000.0, above=0))
    turning = facts.get("rope.dimension_count", int, head_size) / max(head_size, 1)
    rope = {"rope_theta": theta, "rope_type": "default", "partial_rotary_factor": turning}
    kind, factor = _scaling(facts)
    original = facts.get("rope.scaling.original_context_length", int, 0, low=0, high=_SIZE["high"])
    if "factors" in factors:
        rope |= {"rope_type": "frequency_factors", "factors": factors["factors"].tolist()}
    elif "long_factor" in factors and "short_factor" in factors:
        rope |= {"rope_type": "longrope"}
        rope |= {key: [decimal(one) for one in array.tolist()] for key, array in factors.items()}
        rope["attention_factor"] = _known(facts, "attn_factor")
    elif kind == "yarn":
        rope |= {"rope_type": "yarn", "factor": decimal(factor) or None}
        rope["attention_factor"] = _known(facts, "yarn_attn_factor")
        rope |= {key: _known(facts, f"yarn_{key}") for key in ("beta_fast", "beta_slow")}
    elif kind == "linear" and factor not in (0, 1):
        rope |= {"rope_type": "linear", "factor": decimal(factor)}
    if original and rope["rope_type"] in ("yarn", "longrope"):
        rope["original_max_position_embeddings"] = original
    return {"rope_theta": theta, "rope_parameters": rope, "partial_rotary_factor": turning}


def _known(facts: Settings, key: str) -> float | None:
    """Of rope.scaling; None where the file does not say."""
    value = facts.get(f"rope.scaling.{key}", float)
    return None if value is None else decimal(value)


def _scaling(facts: Settings) -> tuple[str, float]:
    """Type and factor; llama.cpp's default is linear, and a factor of 0 or 1 scales nothing."""
    factor = facts.get("rope.scaling.factor", float)
    factor = facts.get("rope.scale_linear", float, 0.0) if factor is None else factor
    return facts.get("rope.scaling.type", str, "linear"), factor


def _refused(facts: Settings, head_size: int, read_as: GgufArchitecture) -> list[str]:
    """What the file asks for and flatlm does not have."""
    found = []
    kind, factor = _scaling(facts)
    if kind not in ("none", "linear", "yarn", "longrope"):
        found.append(f"rope scaling {kind!r} with factor {factor:g}")
    if facts.get("attention.value_length", int, head_size) != head_size:
        found.append(f"values of another size ({facts['attention.value_length']}) than keys ({head_size})")
    scale = facts.get("attention.scale", float, 0.0)
    if scale and "attention.scale" not in read_as.keys and abs(scale * head_size**0.5 - 1) > 1e-6:
        found.append(f"attention.scale {scale:g}")
    known = _OBEYED | _HARMLESS | read_as.obeyed | {*read_as.keys}
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
