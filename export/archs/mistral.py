"""Mistral: Llama's shape, where a query sees a window of the last tokens, in every layer or in some."""

from __future__ import annotations

from flatlm.export.config import SILU, DecoderConfig
from flatlm.export.config_keys import words
from flatlm.export.layers import Attention, Gated, Layer
from flatlm.runtime.settings import Settings

ACTS, OBEYED = SILU, words("sliding_window")
_WINDOW = 4096  # of transformers, where config.json does not name one; null is none


def layers(c: DecoderConfig, settings: Settings) -> list[Layer]:
    kinds = settings.each("layer_types", str) or ["sliding_attention"] * c.layers
    if len(kinds) != c.layers:
        raise settings.wrong("layer_types", f"{c.layers} of them, one for each layer")
    window = settings.get("sliding_window", int, 0, low=1) if "sliding_window" in settings else _WINDOW
    windows = {"full_attention": 0, "sliding_attention": window if window < c.context_length else 0}
    mlp = Gated(c.act, c.intermediate_size)
    return [
        Layer(Attention(c.num_heads, c.kv_num_heads, c.head_size, window=windows[kind]), mlp)
        for kind in kinds
    ]
