"""Qwen3.5 and Qwen3.6 with experts: beside those, one that all tokens go to by a sigmoid of its own."""

from __future__ import annotations

import dataclasses

from flatlm.export.architecture import Architecture
from flatlm.export.archs import qwen3_5_text as dense
from flatlm.export.archs.qwen2_moe import OF_EXPERTS, OF_SHARED, SPARSE, among, routed
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import half_of_experts
from flatlm.export.layers import Decoder
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings, fused: bool = False) -> Decoder:
    """`fused`: as of `DeltaNet`."""
    shared = settings.need("shared_expert_intermediate_size", int, low=1)
    experts = routed(c, settings, shared=shared, shared_gate=True)
    return dense.layered(c, settings, among(c, settings, experts), fused)


OBEYED = dense.OBEYED | SPARSE | words("shared_expert_intermediate_size")
DEFAULTS = {**dense.DEFAULTS, "norm_topk_prob": True, "intermediate_size": 5120}
_FUSED = "mlp.experts.gate_up_proj"
_WHOLE = {  # where all experts are stored as one, gate and up below one another
    "mlp.experts.gate": Name(_FUSED, "", (half_of_experts(0),), bare=True),
    "mlp.experts.up": Name(_FUSED, "", (half_of_experts(1),), bare=True),
    "mlp.experts.down": Name("mlp.experts.down_proj", "", bare=True),
}
_EACH = {place: dataclasses.replace(OF_EXPERTS[place], whole=name) for place, name in _WHOLE.items()}
NAMES = dense.NAMES.but(layer={**OF_EXPERTS, **_EACH, **OF_SHARED})
ARCHITECTURE = Architecture(decoder, obeyed=OBEYED, defaults=DEFAULTS, names=NAMES, layer_types=dense.KINDS)
