"""InternLM3: Llama's shape with biases of the config's choice."""

from __future__ import annotations

from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, pre_norm
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("bias", bool, False)
    qkv_bias = settings.get("qkv_bias", bool, False)
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=qkv_bias, out_bias=bias)
    return Decoder([pre_norm(attention, Gated(c.act, c.intermediate_size, bias=bias))] * c.layers)


ARCHITECTURE = Architecture(decoder, obeyed=words("bias qkv_bias"))
