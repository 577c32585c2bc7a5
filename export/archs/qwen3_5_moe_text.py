"""Qwen3.5 and Qwen3.6 with experts: Qwen3.5's mixers, Qwen2's experts beside one that all tokens go to."""

from __future__ import annotations

import dataclasses

from flatlm.export.architecture import Architecture
from flatlm.export.archs import qwen3_5_text
from flatlm.export.archs.qwen2_moe import OF_EXPERTS, SHARED, SPARSE, routed
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import half_of_experts
from flatlm.export.layers import Decoder
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    shared = settings.need("shared_expert_intermediate_size", int, low=1)
    experts = routed(c, settings, shared=shared, shared_gate=True)
    return qwen3_5_text.mixed(c, settings, [experts] * c.layers)


def _or_whole() -> dict[str, Name]:
    """Checkpoints have each expert by itself, or all as one with gate and up below one another."""
    fused, down = "mlp.experts.gate_up_proj", Name("mlp.experts.down_proj", "", bare=True)
    whole = {
        "gate": Name(fused, "", (half_of_experts(0),), bare=True),
        "up": Name(fused, "", (half_of_experts(1),), bare=True),
        "down": down,
    }
    places = {part: f"mlp.experts.{part}" for part in whole}
    return {
        place: dataclasses.replace(OF_EXPERTS[place], whole=whole[part]) for part, place in places.items()
    }


NAMES = qwen3_5_text.NAMES.but(layer={**OF_EXPERTS, **SHARED, **_or_whole()})
ARCHITECTURE = Architecture(
    decoder,
    obeyed=qwen3_5_text.OBEYED | SPARSE | words("shared_expert_intermediate_size"),
    keys={"intermediate_size": "moe_intermediate_size"},
    defaults={**qwen3_5_text.DEFAULTS, "norm_topk_prob": True},
    names=NAMES,
    layer_types=qwen3_5_text.KINDS,
)
