"""gpt-oss: experts with biases and clamped gates, chosen by their logits; sinks; a window now and then."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import alternate_of_experts, transposed_of_experts
from flatlm.export.layers import Attention, Decoder, Experts, pre_norm
from flatlm.export.names import Name
from flatlm.export.windows import FULL, SLIDING, windows
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias, sizes = settings.get("attention_bias", bool, True), (c.num_heads, c.kv_num_heads, c.head_size)
    experts = settings.need("num_local_experts", int, low=1, high=1 << 16)
    mlp = Experts(
        c.act,
        experts,
        settings.need("num_experts_per_tok", int, low=1, high=experts),
        c.intermediate_size,
        kind="topk_softmax",
        normalize=False,
        router_bias=True,
        bias=True,
        clamp=(
            settings.get("swiglu_alpha", float, 1.702, above=0, high=100),
            settings.get("swiglu_limit", float, 7.0, above=0, high=1e4),
        ),
    )
    reach = windows(c, settings, SLIDING)
    if not settings.each("layer_types", str):
        reach = [0 if i % 2 else window for i, window in enumerate(reach)]
    return Decoder(
        [
            pre_norm(Attention(*sizes, qkv_bias=bias, out_bias=bias, window=window, sinks=True), mlp)
            for window in reach
        ]
    )


_ROPE = {  # of files that do not say
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _fused(half: int) -> Name:
    """Gate and up alternate; GGUF files have them apart."""
    fold, gguf = alternate_of_experts(half), ("ffn_gate_exps", "ffn_up_exps")[half]
    return Name("mlp.experts.gate_up_proj", gguf, (fold,), gguf_folds=(), bare=True)


ARCHITECTURE = Architecture(
    decoder,
    obeyed=words(
        "attention_bias num_local_experts num_experts_per_tok experts_per_token swiglu_alpha swiglu_limit "
        "sliding_window"
    ),
    defaults={"rope_theta": 150000.0, "rms_norm_eps": 1e-5, "rope_parameters": _ROPE},
    names=names.NAMES.but(
        layer={
            "attention.sinks": Name("self_attn.sinks", "attn_sinks"),
            "mlp.norm": Name("post_attention_layernorm", "post_attention_norm"),
            "mlp.router": Name("mlp.router", "ffn_gate_inp"),
            "mlp.experts.gate": _fused(0),
            "mlp.experts.up": _fused(1),
            "mlp.experts.down": Name(
                "mlp.experts.down_proj", "ffn_down_exps", (transposed_of_experts,), gguf_folds=(), bare=True
            ),
        }
    ),
    layer_types=frozenset({FULL, SLIDING}),
)
