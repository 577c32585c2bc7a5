"""Qwen3 with experts: Qwen3's attention, and MLPs of which each token goes to some."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.archs.qwen2_moe import OF_EXPERTS, SPARSE, routed, sparse
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, QkNorm
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, False)
    sizes = c.num_heads, c.kv_num_heads, c.head_size
    attention = Attention(*sizes, qkv_bias=bias, out_bias=bias, qk_norm=QkNorm())
    return sparse(c, settings, attention, routed(c, settings))


ARCHITECTURE = Architecture(
    decoder, obeyed=SPARSE | words("attention_bias"), names=names.NAMES.but(layer=OF_EXPERTS)
)
