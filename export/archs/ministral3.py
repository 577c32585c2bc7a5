"""Ministral 3: Mistral with YaRN.

Queries of positions beyond the original context are scaled by 1 + β · ln(1 + ⌊position / original⌋), which no
block does: the model is exported for texts within it, where that is 1.
"""

from __future__ import annotations

from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, pre_norm
from flatlm.export.names import NAMES, OTHER_HALVES
from flatlm.export.rope import parameters
from flatlm.export.windows import SLIDING, windows
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    sizes, mlp = (c.num_heads, c.kv_num_heads, c.head_size), Gated(c.act, c.intermediate_size)
    layers = [pre_norm(Attention(*sizes, window=window), mlp) for window in windows(c, settings, SLIDING)]
    rope = parameters(settings)
    scaled = rope.get("llama_4_scaling_beta", float, 0.0)
    context = rope.need("original_max_position_embeddings", int, low=1) if scaled else None
    return Decoder(layers, context=context)


_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("sliding_window"),
    names=NAMES.but(ignored=OTHER_HALVES),
    defaults={"rope_parameters": _ROPE, "rms_norm_eps": 1e-5, "head_dim": 128},
)
