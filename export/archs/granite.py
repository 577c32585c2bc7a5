"""Granite 3 and 4.1: Llama's shape with four multipliers, which are folded."""

from __future__ import annotations

from collections.abc import Sequence

from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Body, Branch, Decoder, Gated, Layer, Mixer
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(
        c.num_heads,
        c.kv_num_heads,
        c.head_size,
        qkv_bias=bias,
        out_bias=bias,
        scale=settings.get("attention_multiplier", float, 1.0, above=0),
    )
    mlp = Gated(c.act, c.intermediate_size, bias=settings.get("mlp_bias", bool, False))
    return multiplied(settings, [("attention", attention)] * c.layers, mlp)


def multiplied(settings: Settings, mixers: Sequence[tuple[str, Mixer]], mlp: Body) -> Decoder:
    """A model whose layers mix so, by name, with the multipliers of the stream, of branches and of logits."""
    scale = settings.get("residual_multiplier", float, 1.0, above=0)
    last = Branch("mlp", mlp, scale=scale)
    return Decoder(
        [Layer((Branch(name, mixer, scale=scale), last)) for name, mixer in mixers],
        embedding_scale=settings.get("embedding_multiplier", float, 1.0, above=0),
        logits_scale=1 / settings.get("logits_scaling", float, 1.0, above=0),
    )


MULTIPLIERS = words("attention_multiplier residual_multiplier embedding_multiplier logits_scaling")
ARCHITECTURE = Architecture(decoder, obeyed=MULTIPLIERS | words("attention_bias mlp_bias"))
