"""Qwen3 without experts: Llama's shape, and each head of queries and keys is normed before it is rotated."""

from __future__ import annotations

from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, QkNorm, pre_norm
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias, size = settings.get("attention_bias", bool, False), settings.need("head_dim", int)
    attention = Attention(c.num_heads, c.kv_num_heads, size, qkv_bias=bias, out_bias=bias, qk_norm=QkNorm())
    return Decoder([pre_norm(attention, Gated(c.act, c.intermediate_size))] * c.layers)


ARCHITECTURE = Architecture(decoder, obeyed=words("attention_bias"))
