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
    c = {"hidden_act": "silu", "context": config["max_position_embeddings"], **config}
    given = c.get("rope_scaling") or c.get("rope_parameters") or {}
    outer = {key: c[key] for key in _ROPE_KEYS if c.get(key) is not None}
    if not any(isinstance(value, dict) for value in given.values()):
        kind = given.get("rope_type") or given.get("type") or "default"
        c["rope_parameters"] = {**outer, **given, "rope_type": kind}
        c["rope_parameters"].setdefault("original_max_position_embeddings", c["max_position_embeddings"])
    if c["model_type"] == "smollm3" and not c.get("no_rope_layers"):
        c["no_rope_layers"] = [int((i + 1) % 4 != 0) for i in range(c["num_hidden_layers"])]
    if c["model_type"] == "granitemoehybrid":
        names = {"attention": "full_attention", "mamba": "linear_attention"}
        c["layer_types"] = [names.get(kind, kind) for kind in c["layer_types"]]
    return c
