"""Hunyuan without experts: Llama's shape, where heads are normed after they are rotated."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, QkNorm, pre_norm
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(
        c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias, out_bias=bias, qk_norm=QkNorm(last=True)
    )
    return Decoder([pre_norm(attention, Gated(c.act, c.intermediate_size))] * c.layers)


NAMES = names.NAMES.but(
    layer={
        "attention.q_norm": Name("self_attn.query_layernorm", "attn_q_norm"),
        "attention.k_norm": Name("self_attn.key_layernorm", "attn_k_norm"),
    }
)
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("attention_bias use_qk_norm"),
    defaults={"rms_norm_eps": 1e-5},
    names=NAMES,
)
