"""Mistral: Llama's shape, where a query sees a window of the last tokens, in every layer or in some."""

from __future__ import annotations

from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, pre_norm
from flatlm.export.names import NAMES, OTHER_HALVES
from flatlm.export.windows import SLIDING, windows
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    sizes, mlp = (c.num_heads, c.kv_num_heads, c.head_size), Gated(c.act, c.intermediate_size)
    reach = windows(c, settings, usual=SLIDING)
    return Decoder([pre_norm(Attention(*sizes, window=window), mlp) for window in reach])


ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("sliding_window"),
    names=NAMES.but(ignored=OTHER_HALVES),
    defaults={"sliding_window": 4096},  # null is none
)
