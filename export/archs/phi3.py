"""Phi-3, 3.5 and 4-mini: Llama's shape, weights fused; a part of each head may turn, by LongRoPE."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import half, of_qkv
from flatlm.export.layers import Attention, Decoder, Gated, pre_norm
from flatlm.export.names import Name
from flatlm.export.windows import SLIDING, windows
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    sizes, mlp = (c.num_heads, c.kv_num_heads, c.head_size), Gated(c.act, c.intermediate_size)
    reach = windows(c, settings, SLIDING)
    return Decoder([pre_norm(Attention(*sizes, window=window), mlp) for window in reach])


NAMES = names.NAMES.but(
    layer={
        **{f"attention.{part}": Name("self_attn.qkv_proj", "attn_qkv", (of_qkv(part),)) for part in "qkv"},
        "mlp.gate": Name("mlp.gate_up_proj", "ffn_up", (half(0),)),
        "mlp.up": Name("mlp.gate_up_proj", "ffn_up", (half(1),)),
    }
)
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("sliding_window partial_rotary_factor"),
    defaults={"rms_norm_eps": 1e-5},
    names=NAMES,
    layer_types=frozenset({SLIDING}),  # transformers asks none: all layers have the window
)
