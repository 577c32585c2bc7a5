"""Qwen2-MoE: Qwen2 with experts, beside one that all tokens go to by a sigmoid of its own."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Experts, Gated, pre_norm
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("qkv_bias", bool, True)
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias)
    shared = settings.need("shared_expert_intermediate_size", int, low=1)
    return sparse(c, settings, attention, routed(c, settings, shared=shared, shared_gate=True))


def routed(c: DecoderConfig, settings: Settings, shared: int = 0, shared_gate: bool = False) -> Experts:
    """Experts as config.json has them, chosen by a softmax of all."""
    experts = settings.need("num_experts", int, low=1, high=1 << 16)
    return Experts(
        c.act,
        experts,
        settings.need("num_experts_per_tok", int, low=1, high=experts),
        settings.need("moe_intermediate_size", int, low=1, high=1 << 28),
        normalize=settings.get("norm_topk_prob", bool, False),
        shared=shared,
        shared_gate=shared_gate,
    )


def sparse(c: DecoderConfig, settings: Settings, attention: Attention, experts: Experts) -> Decoder:
    """A model with these experts, where `among` has them."""
    return Decoder([pre_norm(attention, mlp) for mlp in among(c, settings, experts)])


def among(c: DecoderConfig, settings: Settings, experts: Experts) -> list[Gated | Experts]:
    """Experts in every layer, or every nth, but for those that config.json leaves out."""
    step = settings.get("decoder_sparse_step", int, 1, low=1)
    dense = {*settings.each("mlp_only_layers", int)}
    mlp = Gated(c.act, c.intermediate_size)
    return [mlp if i in dense or (i + 1) % step else experts for i in range(c.layers)]


OF_EXPERTS = {
    "mlp.router": Name("mlp.gate", "ffn_gate_inp"),
    "mlp.experts.gate": Name(f"mlp.experts.{names.EXPERT}.gate_proj", "ffn_gate_exps"),
    "mlp.experts.up": Name(f"mlp.experts.{names.EXPERT}.up_proj", "ffn_up_exps"),
    "mlp.experts.down": Name(f"mlp.experts.{names.EXPERT}.down_proj", "ffn_down_exps"),
}
SPARSE = words(
    "num_experts num_experts_per_tok moe_intermediate_size norm_topk_prob decoder_sparse_step mlp_only_layers"
)
OF_SHARED = {
    "mlp.shared.gate": Name("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    "mlp.shared.up": Name("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    "mlp.shared.down": Name("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    "mlp.shared.share": Name("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
}
ARCHITECTURE = Architecture(
    decoder,
    obeyed=SPARSE | words("qkv_bias shared_expert_intermediate_size"),
    names=names.NAMES.but(layer={**OF_EXPERTS, **OF_SHARED}),
)
