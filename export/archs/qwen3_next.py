"""Qwen3-Next: Qwen3.5's mixers, delta nets fused by key head, with Qwen2's experts in most layers."""

from __future__ import annotations

from flatlm.export.architecture import Architecture
from flatlm.export.archs import qwen3_5_text
from flatlm.export.archs.qwen2_moe import OF_EXPERTS, SHARED, SPARSE, mlps, routed
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Decoder
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    shared = settings.need("shared_expert_intermediate_size", int, low=1)
    experts = routed(c, settings, shared=shared, shared_gate=True)
    return qwen3_5_text.mixed(c, settings, mlps(c, settings, experts), fused=True)


ARCHITECTURE = Architecture(
    decoder,
    obeyed=qwen3_5_text.OBEYED | SPARSE | words("shared_expert_intermediate_size"),
    defaults={**qwen3_5_text.DEFAULTS, "norm_topk_prob": True},
    names=qwen3_5_text.NAMES.but(
        layer={
            **OF_EXPERTS,
            **SHARED,
            "delta.qkvz": Name("linear_attn.in_proj_qkvz", "ssm_in"),
            "delta.ba": Name("linear_attn.in_proj_ba", "ssm_beta_alpha"),
        }
    ),
    layer_types=qwen3_5_text.KINDS,
)
