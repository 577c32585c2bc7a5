"""Granite 4: Granite's shape with a fused MLP, Mamba 2 in most layers; turning or not, experts or none."""

from __future__ import annotations

from flatlm.export import mamba, names
from flatlm.export.architecture import Architecture
from flatlm.export.archs.granite import MULTIPLIERS, multiplied
from flatlm.export.archs.granitemoe import OF_EXPERTS
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import half
from flatlm.export.layers import Attention, Decoder, Experts, Gated, Mixer
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
    return multiplied(
        settings, [(name, mixers[name]) for name in map(_KINDS.__getitem__, kinds)], _mlp(c, settings)
    )


def _mlp(c: DecoderConfig, settings: Settings) -> Gated | Experts:
    """Of all tokens; of models with experts, beside those."""
    experts = settings.get("num_local_experts", int, 0, low=0, high=1 << 16)
    if not experts:
        return Gated(c.act, c.intermediate_size)
    return Experts(
        c.act,
        experts,
        settings.need("num_experts_per_tok", int, low=1, high=experts),
        settings.need("intermediate_size", int, low=1, high=1 << 28),
        kind="topk_softmax",
        normalize=False,
        shared=c.intermediate_size,
    )


_KINDS = {
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
}
NAMES = names.NAMES.but(
    layer={
        **mamba.names("mamba"),
        "mamba.norm": Name("input_layernorm", "attn_norm"),
        "mlp.gate": Name("shared_mlp.input_linear", "ffn_up", (half(0),)),
        "mlp.up": Name("shared_mlp.input_linear", "ffn_up", (half(1),)),
        "mlp.down": Name("shared_mlp.output_linear", "ffn_down"),
        "mlp.shared.gate": Name("shared_mlp.input_linear", "ffn_up_shexp", (half(0),)),
        "mlp.shared.up": Name("shared_mlp.input_linear", "ffn_up_shexp", (half(1),)),
        "mlp.shared.down": Name("shared_mlp.output_linear", "ffn_down_shexp"),
        **OF_EXPERTS,
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
