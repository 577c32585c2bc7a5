"""LFM2 with experts: LFM2's mixers; after a few dense layers, experts chosen by sigmoids with a bias."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.archs import lfm2
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Branch, Decoder, Experts, Gated, Layer
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings

FLOOR = 1e-6  # transformers adds it to the sum of shares; beside sums of sigmoids it is nothing


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    experts = settings.need("num_experts", int, low=1, high=1 << 16)
    routed = Experts(
        c.act,
        experts,
        settings.need("num_experts_per_tok", int, low=1, high=experts),
        settings.need("moe_intermediate_size", int, low=1, high=1 << 28),
        kind="sigmoid",
        normalize=settings.get("norm_topk_prob", bool, True),
        scale=settings.get("routed_scaling_factor", float, 1.0, above=0),
        floor=FLOOR,
        select=settings.get("use_expert_bias", bool, True),
    )
    dense, branches = settings.get("num_dense_layers", int, 2, low=0), lfm2.mixers(c, settings)
    mlps = [Gated(c.act, c.intermediate_size) if i < dense else routed for i in range(c.layers)]
    kinds = lfm2.kinds(c, settings)
    return Decoder(
        [Layer((branches[kind], Branch("mlp", mlp))) for kind, mlp in zip(kinds, mlps, strict=True)]
    )


def _expert(weight: str, gguf: str) -> Name:
    return Name(f"feed_forward.experts.{names.EXPERT}.{weight}", gguf)


ARCHITECTURE = Architecture(
    decoder,
    obeyed=words(
        "conv_L_cache conv_bias full_attn_idxs num_experts num_experts_per_tok moe_intermediate_size "
        "norm_topk_prob routed_scaling_factor use_expert_bias num_dense_layers"
    ),
    keys={"rms_norm_eps": "norm_eps"},
    defaults={"rope_theta": 1e6, "norm_eps": 1e-5},
    names=lfm2.NAMES.but(
        layer={
            "mlp.router": Name("feed_forward.gate", "ffn_gate_inp"),
            "mlp.select": Name("feed_forward.expert_bias", "exp_probs_b", gguf_kind=".bias"),
            "mlp.experts.gate": _expert("w1", "ffn_gate_exps"),
            "mlp.experts.up": _expert("w3", "ffn_up_exps"),
            "mlp.experts.down": _expert("w2", "ffn_down_exps"),
        }
    ),
    layer_types=frozenset({"conv", "full_attention"}),
)
