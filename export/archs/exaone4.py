"""EXAONE 4: norms after its branches and of heads; where layers have a window, the others do not turn."""

from __future__ import annotations

import dataclasses

from flatlm.export.architecture import Architecture
from flatlm.export.archs.olmo2 import NAMES, post_normed
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, QkNorm
from flatlm.export.older_configs import Values, with_layer_types
from flatlm.export.rope import still
from flatlm.export.windows import FULL, kinds, windows
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    mlp, layers = Gated(c.act, c.intermediate_size), []
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qk_norm=QkNorm())
    hybrid = settings.get("sliding_window", int, 0, low=1) > 0
    for kind, window in zip(kinds(c, settings), windows(c, settings), strict=True):
        rotary = still(c.rotary()) if hybrid and kind == FULL else c.rotary()
        layers.append(post_normed(dataclasses.replace(attention, window=window, rotary=rotary), mlp))
    return Decoder(layers)


def _as_new(values: Values) -> Values:
    """Without a window all layers see all; a pattern may be letters, LLLG."""
    if values.get("sliding_window") is None:
        return {"layer_types": None, **values, "sliding_window_pattern": None}
    every = values.get("sliding_window_pattern")
    return with_layer_types(values, len(every) if isinstance(every, str) else every)


ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("sliding_window sliding_window_pattern"),
    defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4},
    names=NAMES,
    as_new=_as_new,
)
