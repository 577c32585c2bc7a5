"""Architectures: one file each, named after the `model_type` of config.json, with its `ARCHITECTURE`.

A checkpoint of several halves (text and images) is one of the text half's architecture: its config.json has
that half's under text_config.
"""

from __future__ import annotations

from flatlm.export.blocks.builder import Builder
from flatlm.export.blocks.decoder import build
from flatlm.export.config import read_config, settings_of
from flatlm.export.registry import architecture_of, architectures
from flatlm.export.sources.source import Source
from flatlm.export.text_half import text_config, text_half
from flatlm.runtime.format.graph import Graph

__all__ = ["architectures", "build_graph"]


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
