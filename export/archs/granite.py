"""Granite 3 and 4.1: Llama's shape with four multipliers, which are folded."""

from __future__ import annotations

from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, pre_norm
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(
        c.num_heads,
        c.kv_num_heads,
        c.head_size,
        qkv_bias=bias,
        out_bias=bias,
        scale=settings.get("attention_multiplier", float, 1.0, above=0),
    )
    return multiplied(c, settings, attention)


def multiplied(c: DecoderConfig, settings: Settings, attention: Attention) -> Decoder:
    """A model of this attention with the multipliers of the stream, of branches and of logits."""
    mlp = Gated(c.act, c.intermediate_size, bias=settings.get("mlp_bias", bool, False))
    layer = pre_norm(attention, mlp, scale=settings.get("residual_multiplier", float, 1.0, above=0))
    return Decoder(
        [layer] * c.layers,
        embedding_scale=settings.get("embedding_multiplier", float, 1.0, above=0),
        logits_scale=1 / settings.get("logits_scaling", float, 1.0, above=0),
    )


MULTIPLIERS = words("attention_multiplier residual_multiplier embedding_multiplier logits_scaling")
ARCHITECTURE = Architecture(decoder, obeyed=MULTIPLIERS | words("attention_bias mlp_bias"))
