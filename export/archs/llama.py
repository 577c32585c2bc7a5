"""Llama, and models of its shape (SmolLM2, TinyLlama, …). Biases are the config's choice."""

from __future__ import annotations

from export.blocks import Biases, decoder
from export.config import read_config
from export.sources.source import Source
from runtime.graph import Graph


def build(source: Source) -> Graph:
    """The float graph. Errors as `decoder` and `read_config`."""
    attention = bool(source.config.get("attention_bias"))
    biases = Biases(qkv=attention, out=attention, mlp=bool(source.config.get("mlp_bias")))
    return decoder(source, read_config(source), biases)
