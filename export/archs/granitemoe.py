"""Granite 3 with experts: they are chosen by their logits and stored as one; four multipliers are folded."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.archs.granite import MULTIPLIERS
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import half_of_experts
from flatlm.export.layers import Attention, Decoder, Experts, pre_norm
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(
        c.num_heads,
        c.kv_num_heads,
        c.head_size,
        qkv_bias=bias,
        out_bias=bias,
        scale=settings.get("attention_multiplier", float, 1.0, above=0),
    )
    experts = settings.need("num_local_experts", int, low=1, high=1 << 16)
    kept = settings.need("num_experts_per_tok", int, low=1, high=experts)
    mlp = Experts(c.act, experts, kept, c.intermediate_size, kind="topk_softmax", normalize=False)
    layer = pre_norm(attention, mlp, scale=settings.get("residual_multiplier", float, 1.0, above=0))
    return Decoder(
        [layer] * c.layers,
        embedding_scale=settings.get("embedding_multiplier", float, 1.0, above=0),
        logits_scale=1 / settings.get("logits_scaling", float, 1.0, above=0),
    )


_FUSED = "block_sparse_moe.input_linear"  # in GGUF files, gate and up are apart
OF_EXPERTS = {
    "mlp.router": Name("block_sparse_moe.router.layer", "ffn_gate_inp"),
    "mlp.experts.gate": Name(_FUSED, "ffn_gate_exps", (half_of_experts(0),), gguf_folds=()),
    "mlp.experts.up": Name(_FUSED, "ffn_up_exps", (half_of_experts(1),), gguf_folds=()),
    "mlp.experts.down": Name("block_sparse_moe.output_linear", "ffn_down_exps"),
}
ARCHITECTURE = Architecture(
    decoder,
    obeyed=MULTIPLIERS | words("attention_bias num_local_experts num_experts_per_tok"),
    names=names.NAMES.but(layer=OF_EXPERTS),
)
