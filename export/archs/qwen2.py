"""Qwen2 and Qwen2.5 without experts: Llama's shape with a bias on q, k and v."""

from __future__ import annotations

from flatlm.export.architecture import Architecture
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, pre_norm
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=True)
    return Decoder([pre_norm(attention, Gated(c.act, c.intermediate_size))] * c.layers)


ARCHITECTURE = Architecture(decoder)
