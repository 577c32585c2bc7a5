"""How far each layer of a model sees, by config.json's layer_types and sliding_window."""

from __future__ import annotations

from flatlm.export.decoder_config import DecoderConfig
from flatlm.runtime.settings import Settings

SLIDING, FULL = "sliding_attention", "full_attention"


def kinds(c: DecoderConfig, settings: Settings, usual: str = FULL) -> list[str]:
    """The type of each layer; where layer_types does not say, all are `usual`."""
    given = settings.each("layer_types", str) or [usual] * c.layers
    if len(given) != c.layers:
        raise settings.wrong("layer_types", f"{c.layers} of them, one for each layer")
    return given


def windows(c: DecoderConfig, settings: Settings, usual: str = FULL) -> list[int]:
    """Tokens that a query of each layer sees, 0 where all before it: also where a text is never longer."""
    window = settings.get("sliding_window", int, 0, low=1)
    reach = window if window < c.context_length else 0
    return [reach if kind == SLIDING else 0 for kind in kinds(c, settings, usual)]
