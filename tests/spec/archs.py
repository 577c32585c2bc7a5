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


def spec(config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """ids [T] → logits [T, V]. AssertionError where a weight is not used."""
    family = next(family for family in _FAMILIES if hasattr(family, config["model_type"]))
    decoder, read = getattr(family, config["model_type"])(config, weights)
    assert set(weights) == read.used, sorted(set(weights) - read.used)
    return decoder
