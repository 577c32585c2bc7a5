"""Llama 2 and 3, SmolLM2, TinyLlama and their like: biases and activation are the config's choice."""

from __future__ import annotations

from flatlm.export.architecture import SILU, Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, pre_norm
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias, out_bias=bias)
    mlp = Gated(c.act, c.intermediate_size, bias=settings.get("mlp_bias", bool, False))
    return Decoder([pre_norm(attention, mlp)] * c.layers)


ARCHITECTURE = Architecture(
    decoder, obeyed=words("attention_bias mlp_bias"), acts={**SILU, "gelu_pytorch_tanh": "gelu_tanh"}
)
