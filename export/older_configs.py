"""What configs of transformers 4 leave to their class, as transformers 5 writes it: a function for each.

They take the keys and values of a config.json and give others (`Architecture.as_new`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flatlm.export.windows import FULL, SLIDING

Values = dict[str, Any]


def with_layer_types(values: Values, every: object) -> Values:
    """layer_types where there are none: each `every`-th layer sees all, the others have a window."""
    layers = values.get("num_hidden_layers")
    if values.get("layer_types") or type(layers) is not int or type(every) is not int or every < 1:
        return values
    return {**values, "layer_types": [SLIDING if i % every else FULL for i in range(1, layers + 1)]}


def with_two_ropes(values: Values, local_theta: object) -> Values:
    """rope_parameters by type of layer: the rope's scaling is of layers that see all, those with a window
    have `local_theta`, or None: the same base.
    """
    given = values.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in given.values()):
        return values
    theta = given.get("rope_theta") or values.get("rope_theta")
    base = {"rope_theta": theta} if theta else {}
    scaling = values.get("rope_scaling") or {"rope_type": "default"}
    local = {"rope_type": "default", **base, **({"rope_theta": local_theta} if local_theta else {})}
    left = {key: value for key, value in values.items() if key not in ("rope_theta", "rope_scaling")}
    return {**left, "rope_parameters": {SLIDING: local, FULL: {**base, **given, **scaling}}}
