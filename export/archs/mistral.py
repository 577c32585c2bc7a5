"""Mistral: Llama's shape, where a query sees a window of the last tokens, in every layer or in some."""

from __future__ import annotations

from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, pre_norm
from flatlm.runtime.settings import Settings

_WINDOW = 4096  # of transformers, where config.json does not name one; null is none


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    kinds = settings.each("layer_types", str) or ["sliding_attention"] * c.layers
    if len(kinds) != c.layers:
        raise settings.wrong("layer_types", f"{c.layers} of them, one for each layer")
    window = settings.get("sliding_window", int, 0, low=1) if "sliding_window" in settings else _WINDOW
    windows = {"full_attention": 0, "sliding_attention": window if window < c.context_length else 0}
    mlp = Gated(c.act, c.intermediate_size)
    sizes = c.num_heads, c.kv_num_heads, c.head_size
    return Decoder([pre_norm(Attention(*sizes, window=windows[kind]), mlp) for kind in kinds])


ARCHITECTURE = Architecture(decoder, obeyed=words("sliding_window"))
