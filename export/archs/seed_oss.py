"""Seed-OSS: Llama's shape with a bias on q, k and v, and one on the output if it is asked for."""

from __future__ import annotations

from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, pre_norm
from flatlm.export.names import NAMES, Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    attention = Attention(
        c.num_heads,
        c.kv_num_heads,
        c.head_size,
        qkv_bias=settings.get("attention_bias", bool, True),
        out_bias=settings.get("attention_out_bias", bool, False),
    )
    mlp = Gated(c.act, c.intermediate_size, bias=settings.get("mlp_bias", bool, False))
    return Decoder([pre_norm(attention, mlp)] * c.layers)


ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("attention_bias attention_out_bias mlp_bias"),
    defaults={"head_dim": 128},
    names=NAMES.but(layer={"mlp.norm": Name("post_attention_layernorm", "post_attention_norm")}),
)
