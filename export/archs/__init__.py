"""Architectures: one file each, named after the `model_type` of config.json, with its `ARCHITECTURE`.

A checkpoint of several halves (text and images) is one of the text half's architecture: its config.json has
that half's under text_config.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from flatlm.export.architecture import Architecture
from flatlm.export.blocks.builder import Builder
from flatlm.export.blocks.decoder import build
from flatlm.export.config import read_config, settings_of
from flatlm.export.sources.source import Source
from flatlm.export.text_half import text_config, text_half
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.format.graph import Graph
from flatlm.runtime.settings import Settings


def architectures() -> list[str]:
    """The model types that can be exported."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def architecture_of(config: Settings, name: str) -> Architecture:
    """Of a model called `name`, by its config.json.

    Raises SourceError where there is no model_type, UnsupportedError where it is none that flatlm knows.
    """
    model_type = config.get("model_type", str)
    if not model_type:
        raise SourceError(f"{name}: config.json has no model_type, so the architecture is unknown")
    known = architectures()
    if model_type not in known:
        (near,) = difflib.get_close_matches(model_type, known, n=1, cutoff=0)
        raise UnsupportedError(
            f"{name}: architecture {model_type!r} is not supported; of the {len(known)} that flatlm knows "
            f"the nearest by name is {near!r}"
        )
    found: Architecture = importlib.import_module(f"{__name__}.{model_type}").ARCHITECTURE
    return found


def build_graph(source: Source, notes: list[str] | None = None, context: int | None = None) -> Graph:
    """The model's float graph, its constants lazy, for texts of at most `context` tokens (None: as many as it
    takes). `notes` gets lines for people on how it was read.

    Raises UnsupportedError naming the architecture or feature, SourceError where the checkpoint is damaged.
    """
    config = text_config(source.config)
    architecture = architecture_of(config, source.name)
    settings, half = settings_of(config, architecture), text_half(source, architecture.names)
    shape = read_config(half, settings, architecture, context)
    b = Builder(half, shape, architecture.names)
    graph = build(b, architecture.decoder(shape, settings))
    if notes is not None:
        notes += b.made.notes
    return graph
