"""ERNIE 4.5 without experts: Llama's shape, where pairs that turn lie side by side."""

from __future__ import annotations

from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, pre_norm
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("use_bias", bool, False)
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias, out_bias=bias)
    return Decoder([pre_norm(attention, Gated(c.act, c.intermediate_size, bias=bias))] * c.layers)


ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("use_bias"),
    defaults={"rope_theta": 5e5, "rms_norm_eps": 1e-5, "head_dim": 128},
    interleaved=True,
)
