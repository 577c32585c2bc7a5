"""Architectures: one file each, named after the `model_type` of config.json.

It says in `layers(config, settings)` which layers the model has; `settings` are all that config.json holds.
OBEYED are the keys that it reads beyond those of all decoders, ACTS the values of hidden_act that it has, as
acts of `Gated`.
"""

from __future__ import annotations

import importlib
import pkgutil

from flatlm.export.blocks import decoder
from flatlm.export.config import read_config
from flatlm.export.sources.source import Source
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.format.graph import Graph


def architectures() -> list[str]:
    """The model types that can be exported."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def build_graph(source: Source) -> Graph:
    """The model's float graph, its constants lazy.

    Raises UnsupportedError naming the architecture or feature, SourceError where the checkpoint is damaged.
    """
    model_type = source.config.get("model_type", str)
    if not model_type:
        raise SourceError(f"{source.name}: config.json has no model_type, so the architecture is unknown")
    if model_type not in architectures():
        known = ", ".join(architectures())
        raise UnsupportedError(
            f"{source.name}: architecture {model_type!r} is not supported; flatlm knows {known}"
        )
    architecture = importlib.import_module(f"{__name__}.{model_type}")
    config = read_config(source, architecture.ACTS, architecture.OBEYED)
    return decoder(source, config, architecture.layers(config, source.config))
