"""config.json and weights of a checkpoint → the specification's decoder: spec(config, weights)(ids) → logits.

Plain numpy in float64, written apart from flatlm to be checked against transformers and to check flatlm where
transformers is not installed. One function for each model type, named after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.spec import experts, gemma, layer_norm, llama, recurrent

_FAMILIES = (llama, gemma, recurrent, layer_norm, experts)
_LONGEST = ("max_position_embeddings", "n_positions", "seq_length")
_ROPE_KEYS = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


def spec(config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """ids [T] → logits [T, V], of a model for texts as long as config.json allows.

    AssertionError where a weight is not used.
    """
    kind = config["model_type"]
    family = next(family for family in _FAMILIES if hasattr(family, kind))
    decoder, read = getattr(family, kind)(_as_transformers_5(config), weights)
    assert set(weights) == read.used, sorted(set(weights) - read.used)
    return decoder


def _as_transformers_5(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what its class in transformers 5 adds and moves."""
    usual = {} if "hidden_activation" in config else {"hidden_act": "silu"}
    longest = next(config[key] for key in _LONGEST if key in config)
    c = {**usual, "context": longest, "max_position_embeddings": longest, **config}
    if share := c.pop("rotary_pct", None):
        c["partial_rotary_factor"] = share
    unsaid = _GPT_OSS_ROPE if c["model_type"] == "gpt_oss" else {}
    given = c.get("rope_scaling") or c.get("rope_parameters") or unsaid
    outer = {key: c[key] for key in _ROPE_KEYS if c.get(key) is not None}
    if not any(isinstance(value, dict) for value in given.values()):
        kind = given.get("rope_type") or given.get("type") or "default"
        c["rope_parameters"] = {**outer, **given, "rope_type": kind}
        c["rope_parameters"].setdefault("original_max_position_embeddings", c["max_position_embeddings"])
    if c["model_type"] in _WINDOWS:
        _layers_of_two_kinds(c)
    if c["model_type"] == "gemma" and c["hidden_act"] == "gelu":
        c["hidden_act"] = "gelu_tanh"
    if c["model_type"] == "smollm3" and not c.get("no_rope_layers"):
        c["no_rope_layers"] = [int((i + 1) % 4 != 0) for i in range(c["num_hidden_layers"])]
    if c["model_type"] == "granitemoehybrid":
        names = {"attention": "full_attention", "mamba": "linear_attention"}
        c["layer_types"] = [names.get(kind, kind) for kind in c["layer_types"]]
    return c


_GPT_OSS_ROPE = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
_GPT_OSS_ROPE |= {"original_max_position_embeddings": 4096}
_WINDOWS = {
    "gemma2": 2,
    "gemma3_text": 6,
    "olmo3": 4,
    "exaone4": 4,
    "cohere2": 4,
}  # each so-manieth layer has none


def _layers_of_two_kinds(c: dict[str, Any]) -> None:
    """In place: kinds of layers, and rope parameters by kind where the type has them."""
    kind, layers = c["model_type"], range(1, c["num_hidden_layers"] + 1)
    every = c.get("sliding_window_pattern") or _WINDOWS[kind]
    every = len(every) if isinstance(every, str) else every
    if not c.get("layer_types"):
        some = c.get("sliding_window") is not None
        names = ["full_attention", "sliding_attention"]
        c["layer_types"] = [names[some and bool(i % every)] for i in layers]
    rope = c["rope_parameters"]
    if kind in ("gemma3_text", "olmo3") and "full_attention" not in rope:
        local = c.get("rope_local_base_freq", 1e4) if kind == "gemma3_text" else rope["rope_theta"]
        still = {"rope_type": "default", "rope_theta": local}
        c["rope_parameters"] = {"full_attention": rope, "sliding_attention": still}
