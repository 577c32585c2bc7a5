"""Qwen3 without experts: Llama's shape, and each head of queries and keys is normed before it is rotated."""

from __future__ import annotations

from flatlm.export.config import SILU, DecoderConfig
from flatlm.export.config_keys import words
from flatlm.export.layers import Attention, Gated, Layer
from flatlm.runtime.settings import Settings

ACTS, OBEYED = SILU, words("attention_bias")


def layers(c: DecoderConfig, settings: Settings) -> list[Layer]:
    bias, size = settings.get("attention_bias", bool, False), settings.need("head_dim", int)
    attention = Attention(c.num_heads, c.kv_num_heads, size, qkv_bias=bias, out_bias=bias, qk_norm=True)
    return [Layer(attention, Gated(c.act, c.intermediate_size))] * c.layers
