"""Qwen2 and Qwen2.5 without experts: Llama's shape with a bias on q, k and v."""

from __future__ import annotations

from export.blocks import Biases, decoder
from export.config import read_config
from export.sources.source import Source
from runtime.graph import Graph


def build(source: Source) -> Graph:
    """The float graph. Errors as `decoder` and `read_config`."""
    return decoder(source, read_config(source), Biases(qkv=True))
