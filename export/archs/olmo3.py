"""OLMo 3: OLMo 2 with a window in three of four layers; the others alone have the rope's scaling."""

from __future__ import annotations

import dataclasses

from flatlm.export.architecture import Architecture
from flatlm.export.archs.olmo2 import NAMES, post_normed
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, QkNorm
from flatlm.export.older_configs import with_layer_types, with_two_ropes
from flatlm.export.windows import kinds, windows
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(
        c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias, out_bias=bias, qk_norm=QkNorm("all")
    )
    mlp, layers = Gated(c.act, c.intermediate_size), []
    for kind, window in zip(kinds(c, settings), windows(c, settings), strict=True):
        layers.append(post_normed(dataclasses.replace(attention, window=window, rotary=c.rotary(kind)), mlp))
    return Decoder(layers)


ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("attention_bias sliding_window"),
    defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096, "rope_theta": 5e5},
    names=NAMES,
    rope_by_layer_type=True,
    as_new=lambda values: with_two_ropes(with_layer_types(values, 4), None),
)
