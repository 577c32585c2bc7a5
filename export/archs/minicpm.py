"""MiniCPM 1 and 4: Llama's shape with scales of embedding, branches and logits, by LongRoPE in 4."""

from __future__ import annotations

import math

from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, pre_norm
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias, out_bias=bias)
    depth = settings.get("scale_depth", float, 1.0, above=0)
    layer = pre_norm(attention, Gated(c.act, c.intermediate_size), scale=depth / math.sqrt(c.layers))
    return Decoder(
        [layer] * c.layers,
        embedding_scale=settings.get("scale_emb", float, 1.0, above=0),
        logits_scale=settings.get("dim_model_base", int, 1, low=1) / c.hidden_size,
    )


ARCHITECTURE = Architecture(decoder, obeyed=words("attention_bias scale_depth scale_emb dim_model_base"))
