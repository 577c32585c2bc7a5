"""OLMoE: experts in every layer, with shares of the softmax; a norm of all queries, one of all keys."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.archs.qwen2_moe import OF_EXPERTS
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Experts, QkNorm, pre_norm
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, False)
    sizes, normed = (c.num_heads, c.kv_num_heads, c.head_size), QkNorm("all")
    attention = Attention(*sizes, qkv_bias=bias, out_bias=bias, qk_norm=normed)
    experts = settings.need("num_experts", int, low=1, high=1 << 16)
    kept = settings.need("num_experts_per_tok", int, low=1, high=experts)
    normalize = settings.get("norm_topk_prob", bool, False)
    mlp = Experts(c.act, experts, kept, c.intermediate_size, normalize=normalize)
    return Decoder([pre_norm(attention, mlp)] * c.layers)


ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("attention_bias num_experts num_experts_per_tok norm_topk_prob"),
    defaults={"rms_norm_eps": 1e-5},
    names=names.NAMES.but(layer=OF_EXPERTS),
)
