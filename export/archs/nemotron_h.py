"""Nemotron-H without experts: each layer is Mamba 2, attention without positions, or an MLP of relu²."""

from __future__ import annotations

from typing import Any

from flatlm.export import mamba, names
from flatlm.export.architecture import ACTS, Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Branch, Decoder, Layer, Mamba2, Plain
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings

_LETTERS = {"M": "mamba", "-": "mlp", "*": "attention", "E": "moe"}  # of older configs
_KINDS = {
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
    "mlp": "mlp",
}


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    sizes = c.num_heads, c.kv_num_heads, c.head_size
    mlp = Plain(c.act, c.intermediate_size, bias=settings.get("mlp_bias", bool, False))
    branches = {
        "mamba": Branch("mamba", _mamba(settings)),
        "attention": Branch("attention", Attention(*sizes, turned=False)),
        "mlp": Branch("mlp", mlp),
    }
    kinds = settings.each("layer_types", str)
    return Decoder([Layer((branches[_KINDS[kind]],)) for kind in kinds])


def _mamba(settings: Settings) -> Mamba2:
    heads = settings.need("mamba_num_heads", int, low=1, high=1 << 20)
    return Mamba2(
        heads,
        settings.need("mamba_head_dim", int, low=1, high=1 << 20),
        settings.need("ssm_state_size", int, low=1, high=1 << 20),
        mamba.groups_of(settings, "n_groups", heads),
        settings.need("conv_kernel", int, low=2, high=64),
        conv_bias=settings.get("use_conv_bias", bool, True),
        bias=settings.get("use_bias", bool, False),
        # transformers' prompts have this; its single tokens, and other programs, have no least step
        least_step=settings.get("time_step_min", float, 0.001, low=0, high=1e3),
    )


def _as_new(values: dict[str, Any]) -> dict[str, Any]:
    """layer_types for what older configs say in letters, and as many layers."""
    kinds, letters = values.get("layers_block_type"), values.get("hybrid_override_pattern")
    if not kinds and isinstance(letters, str):
        kinds = [_LETTERS.get(letter, letter) for letter in letters]
    kinds = values.get("layer_types") or kinds
    return {**values, **({"layer_types": kinds, "num_hidden_layers": len(kinds)} if kinds else {})}


NAMES = names.NAMES.but(
    outer={"embedding": Name("embeddings", "token_embd"), "norm": Name("norm_f", "output_norm")},
    layer={
        **mamba.names("mixer"),
        **{f"{part}.norm": Name("norm", "attn_norm") for part in ("mamba", "attention", "mlp")},
        "attention.q": Name("mixer.q_proj", "attn_q"),
        "attention.k": Name("mixer.k_proj", "attn_k"),
        "attention.v": Name("mixer.v_proj", "attn_v"),
        "attention.out": Name("mixer.o_proj", "attn_output"),
        "mlp.up": Name("mixer.up_proj", "ffn_up"),
        "mlp.down": Name("mixer.down_proj", "ffn_down"),
    },
    root="backbone.",
)
ARCHITECTURE = Architecture(
    decoder,
    # of experts, which none of these layers has
    obeyed=words("""
        mlp_bias use_bias time_step_min time_step_limit time_step_floor
        time_step_max layers_block_type hybrid_override_pattern n_routed_experts n_shared_experts
        routed_scaling_factor moe_shared_expert_overlap moe_shared_expert_intermediate_size norm_topk_prob
        rescale_prenorm_residual
    """),
    acts=ACTS,
    keys={"hidden_act": "mlp_hidden_act", "rms_norm_eps": "layer_norm_epsilon"},
    defaults={
        "mlp_hidden_act": "relu2",
        "layer_norm_epsilon": 1e-5,
        "rope_theta": 10000.0,  # nothing turns
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 8,
        "conv_kernel": 4,
    },
    names=NAMES,
    layer_types=frozenset(_KINDS),
    only={"mamba_hidden_act": "silu", "attention_bias": False, "mamba_proj_bias": False},
    as_new=_as_new,
)
