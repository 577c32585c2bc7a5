"""Llama, and models of its shape (SmolLM2, TinyLlama, …). Biases and activation are the config's choice."""

from __future__ import annotations

from flatlm.export.config import SILU, DecoderConfig
from flatlm.export.config_keys import words
from flatlm.export.layers import Attention, Gated, Layer
from flatlm.runtime.settings import Settings

ACTS = {**SILU, "gelu_pytorch_tanh": "gelu_tanh"}
OBEYED = words("attention_bias mlp_bias")


def layers(c: DecoderConfig, settings: Settings) -> list[Layer]:
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias, out_bias=bias)
    mlp = Gated(c.act, c.intermediate_size, bias=settings.get("mlp_bias", bool, False))
    return [Layer(attention, mlp)] * c.layers
