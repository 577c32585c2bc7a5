"""SmolLM3: Llama's shape, where the heads of every fourth layer do not turn."""

from __future__ import annotations

import dataclasses

from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, pre_norm
from flatlm.export.rope import still
from flatlm.export.windows import windows
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    every = settings.get("no_rope_layer_interval", int, 4, low=1)
    turns = settings.each("no_rope_layers", int) or [(i + 1) % every for i in range(c.layers)]
    if len(turns) != c.layers:
        raise settings.wrong("no_rope_layers", f"{c.layers} of them, one for each layer")
    bias, reach = settings.get("attention_bias", bool, False), windows(c, settings)
    if not settings.get("use_sliding_window", bool, False):
        reach = [0] * c.layers
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias, out_bias=bias)
    mlp = Gated(c.act, c.intermediate_size, bias=settings.get("mlp_bias", bool, False))
    rotaries = [c.rotary() if turn else still(c.rotary()) for turn in turns]
    return Decoder(
        [
            pre_norm(dataclasses.replace(attention, rotary=rotary, window=window), mlp)
            for rotary, window in zip(rotaries, reach, strict=True)
        ]
    )


ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("attention_bias mlp_bias no_rope_layers no_rope_layer_interval sliding_window"),
    defaults={"rope_theta": 2e6},
)
