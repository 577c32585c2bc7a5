"""Granite with windows: sinks in every head, and a rotary base for each layer, 0 where it does not turn."""

from __future__ import annotations

import dataclasses

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.archs.granite import MULTIPLIERS, multiplied
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated
from flatlm.export.names import Name
from flatlm.export.older_configs import Values
from flatlm.export.rope import Rotary, parameters, rotary, still
from flatlm.export.windows import FULL, SLIDING, windows
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
        sinks=True,
    )
    each = zip(windows(c, settings), _rotaries(c, settings), strict=True)
    mixers = [dataclasses.replace(attention, window=window, rotary=turn) for window, turn in each]
    mlp = Gated(c.act, c.intermediate_size, bias=settings.get("mlp_bias", bool, False))
    return multiplied(settings, [("attention", mixer) for mixer in mixers], mlp)


def _rotaries(c: DecoderConfig, settings: Settings) -> list[Rotary]:
    """How each layer turns."""
    bases = settings.values.get("layer_rope_theta") or [None] * c.layers
    if not isinstance(bases, list) or len(bases) != c.layers:
        raise settings.wrong("layer_rope_theta", f"{c.layers} of them, one for each layer")
    rope, made = parameters(settings), []
    for base in bases:
        if base is None:
            made.append(c.rotary())
        elif not base:
            made.append(still(c.rotary()))
        else:
            own = dataclasses.replace(rope, values={**rope.values, "rope_theta": base})
            turn = rotary(own, c.head_size, c.context_length)
            made.append(dataclasses.replace(turn, name=f"rotary.{base:g}"))
    return made


def _as_new(values: Values) -> Values:
    layers = values.get("num_hidden_layers")
    if values.get("layer_types") or not isinstance(layers, int):
        return values
    return {**values, "layer_types": [SLIDING if i % 4 else FULL for i in range(layers)]}


ARCHITECTURE = Architecture(
    decoder,
    obeyed=MULTIPLIERS | words("attention_bias mlp_bias sliding_window layer_rope_theta"),
    defaults={"rms_norm_eps": 1e-5, "sliding_window": 128, "tie_word_embeddings": True},
    names=names.NAMES.but(layer={"attention.sinks": Name("self_attn.sinks", "attn_sinks")}),
    as_new=_as_new,
)
