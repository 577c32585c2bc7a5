"""Qwen2 and Qwen2.5 without experts: Llama's shape with a bias on q, k and v."""

from __future__ import annotations

from flatlm.export.blocks import Biases, decoder
from flatlm.export.config import read_config
from flatlm.export.sources.source import Source
from flatlm.runtime.format.graph import Graph


def build(source: Source) -> Graph:
    """The float graph. Errors as `decoder` and `read_config`."""
    return decoder(source, read_config(source), Biases(qkv=True))
