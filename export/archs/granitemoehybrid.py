"""Granite 4: Granite's shape with a fused MLP, beside experts or alone; Mamba 2 in most layers."""

from __future__ import annotations

from flatlm.export import mamba, names
from flatlm.export.architecture import Architecture
from flatlm.export.archs.granite import MULTIPLIERS, multiplied
from flatlm.export.archs.granitemoe import OF_EXPERTS, routed
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import half
from flatlm.export.layers import Attention, Decoder, Mixer
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
    recurrence = mamba.mamba2(settings, c.hidden_size)
    mixers: dict[str, Mixer] = {"mamba": recurrence, "attention": attention}
    kinds = settings.each("layer_types", str) or settings.each("layers_block_type", str)
    kinds = kinds or ["mamba"] * c.layers
    if len(kinds) != c.layers:
        raise settings.wrong("layer_types", f"{c.layers} of them, one for each layer")
    experts = routed(c, settings, c.intermediate_size) if settings.get("num_local_experts", int) else None
    chosen = [(name, mixers[name]) for name in map(_KINDS.__getitem__, kinds)]
    return multiplied(c, settings, chosen, experts)


_KINDS = {
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
}
NAMES = names.NAMES.but(
    layer={
        **mamba.names("mamba"),
        **OF_EXPERTS,
        "mamba.norm": Name("input_layernorm", "attn_norm"),
        "mlp.gate": Name("shared_mlp.input_linear", "ffn_up", (half(0),)),
        "mlp.up": Name("shared_mlp.input_linear", "ffn_up", (half(1),)),
        "mlp.down": Name("shared_mlp.output_linear", "ffn_down"),
        "mlp.shared.gate": Name("shared_mlp.input_linear", "ffn_gate_shexp", (half(0),), gguf_folds=()),
        "mlp.shared.up": Name("shared_mlp.input_linear", "ffn_up_shexp", (half(1),), gguf_folds=()),
        "mlp.shared.down": Name("shared_mlp.output_linear", "ffn_down_shexp"),
    }
)
ARCHITECTURE = Architecture(
    decoder,
    obeyed=MULTIPLIERS
    | mamba.OBEYED
    | words("attention_bias position_embedding_type num_local_experts num_experts_per_tok"),
    keys={"intermediate_size": "shared_intermediate_size"},
    defaults={"num_local_experts": 8},
    names=NAMES,
    layer_types=frozenset(_KINDS),
)
