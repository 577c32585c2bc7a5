"""Granite 4 without recurrences and experts: Granite's shape with a fused MLP, turning or not."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.archs.granite import MULTIPLIERS, multiplied
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import half
from flatlm.export.layers import Attention, Decoder
from flatlm.export.names import Name
from flatlm.export.rope import still
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    turns = settings.get("position_embedding_type", str) == "rope"
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(
        c.num_heads,
        c.kv_num_heads,
        c.head_size,
        qkv_bias=bias,
        out_bias=bias,
        rotary=c.rotary() if turns else still(c.rotary()),
        scale=settings.get("attention_multiplier", float, 1.0, above=0),
    )
    return multiplied(c, settings, attention)


NAMES = names.NAMES.but(
    layer={
        "mlp.gate": Name("shared_mlp.input_linear", "ffn_up", (half(0),)),
        "mlp.up": Name("shared_mlp.input_linear", "ffn_up", (half(1),)),
        "mlp.down": Name("shared_mlp.output_linear", "ffn_down"),
    }
)
ARCHITECTURE = Architecture(
    decoder,
    obeyed=MULTIPLIERS | words("attention_bias position_embedding_type"),
    keys={"intermediate_size": "shared_intermediate_size"},
    defaults={"layer_types": ["linear_attention"], "num_local_experts": 8},
    names=NAMES,
    layer_types=frozenset({"attention", "full_attention"}),
)
