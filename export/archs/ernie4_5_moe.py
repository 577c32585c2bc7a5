"""ERNIE 4.5 with experts: they are chosen with a bias, beside some that all tokens go to."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import flat
from flatlm.export.layers import Attention, Decoder, Experts, Gated, pre_norm
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("use_bias", bool, False)
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias, out_bias=bias)
    dense, routed = Gated(c.act, c.intermediate_size, bias=bias), _routed(c, settings)
    first, last = settings.get("moe_layer_start_index", int, 1), settings.get("moe_layer_end_index", int, -1)
    every, last = settings.get("moe_layer_interval", int, 1, low=1), last if last >= 0 else c.layers - 1
    sparse = [first <= i <= last and (i + 1) % every == 0 for i in range(c.layers)]
    return Decoder([pre_norm(attention, routed if one else dense) for one in sparse])


def _routed(c: DecoderConfig, settings: Settings) -> Experts:
    experts = settings.need("moe_num_experts", int, low=1, high=1 << 16)
    wide = settings.need("moe_intermediate_size", int, low=1, high=1 << 28)
    return Experts(
        c.act,
        experts,
        settings.need("moe_k", int, low=1, high=experts),
        wide,
        floor=settings.get("moe_norm_min", float, 1e-12, low=0, high=1),
        select=True,
        shared=wide * settings.get("moe_num_shared_experts", int, 0, low=0, high=1 << 10),
    )


_STATICS = "mlp.moe_statics.e_score_correction_bias"
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words(
        "use_bias moe_num_experts moe_k moe_intermediate_size moe_norm_min moe_num_shared_experts "
        "moe_layer_interval moe_layer_start_index moe_layer_end_index"
    ),
    defaults={"rope_theta": 5e5, "rms_norm_eps": 1e-5},
    names=names.NAMES.but(
        layer={
            "mlp.router": Name("mlp.gate", "ffn_gate_inp"),
            "mlp.select": Name(_STATICS, "exp_probs_b", (flat,), gguf_kind=".bias"),
            "mlp.experts.gate": Name(f"mlp.experts.{names.EXPERT}.gate_proj", "ffn_gate_exps"),
            "mlp.experts.up": Name(f"mlp.experts.{names.EXPERT}.up_proj", "ffn_up_exps"),
            "mlp.experts.down": Name(f"mlp.experts.{names.EXPERT}.down_proj", "ffn_down_exps"),
            "mlp.shared.gate": Name("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
            "mlp.shared.up": Name("mlp.shared_experts.up_proj", "ffn_up_shexp"),
            "mlp.shared.down": Name("mlp.shared_experts.down_proj", "ffn_down_shexp"),
        }
    ),
    interleaved=True,
)
