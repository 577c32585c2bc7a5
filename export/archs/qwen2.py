"""Qwen2 and Qwen2.5 without experts: Llama's shape with a bias on q, k and v."""

from __future__ import annotations

from flatlm.export.config import SILU, DecoderConfig
from flatlm.export.config_keys import words
from flatlm.export.layers import Attention, Gated, Layer
from flatlm.runtime.settings import Settings

ACTS, OBEYED = SILU, words("")


def layers(c: DecoderConfig, settings: Settings) -> list[Layer]:
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=True)
    return [Layer(attention, Gated(c.act, c.intermediate_size))] * c.layers
