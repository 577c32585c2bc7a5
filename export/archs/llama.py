"""Llama, and models of its shape (SmolLM2, TinyLlama, …). Biases are the config's choice."""

from __future__ import annotations

from flatlm.export.blocks import Biases, decoder
from flatlm.export.config import read_config
from flatlm.export.sources.source import Source
from flatlm.runtime.format.graph import Graph


def build(source: Source) -> Graph:
    """The float graph. Errors as `decoder` and `read_config`."""
    attention = source.config.get("attention_bias", bool, False)
    biases = Biases(qkv=attention, out=attention, mlp=source.config.get("mlp_bias", bool, False))
    return decoder(source, read_config(source), biases)
