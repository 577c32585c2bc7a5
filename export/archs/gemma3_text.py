"""Gemma 3, the text half, and FunctionGemma: Gemma 2 with norms of heads and two rotary tables."""

from __future__ import annotations

import dataclasses

from flatlm.export.archs import gemma2
from flatlm.export.archs.gemma2 import sandwiched
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Decoder, QkNorm
from flatlm.export.names import OTHER_HALVES
from flatlm.export.older_configs import Values, with_layer_types, with_two_ropes
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    return sandwiched(c, settings, QkNorm(plus_one=True))


def _as_new(values: Values) -> Values:
    values = {"rope_theta": 1e6, **values}
    every = values.get("sliding_window_pattern") or values.get("_sliding_window_pattern") or 6
    return with_two_ropes(with_layer_types(values, every), values.get("rope_local_base_freq") or 1e4)


# Of files that see: their text_config leaves out what is as usual.
SIZES = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
}
ARCHITECTURE = dataclasses.replace(
    gemma2.ARCHITECTURE,
    decoder=decoder,
    obeyed=gemma2.OBEYED | words("hidden_act rope_local_base_freq"),
    defaults={**gemma2.DEFAULTS, **SIZES},
    names=gemma2.NAMES.but(ignored=OTHER_HALVES),
    rope_by_layer_type=True,
    only={"attn_logit_softcapping": None},  # transformers stores it and does not obey it
    as_new=_as_new,
)
