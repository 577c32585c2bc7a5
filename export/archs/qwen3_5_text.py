"""Qwen3.5 and Qwen3.6 without experts: gated delta nets, and attention with an output gate among them."""

from __future__ import annotations

from collections.abc import Sequence

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import of_gated_heads, squeezed
from flatlm.export.layers import Attention, Body, Branch, Decoder, DeltaNet, Gated, Layer, Norm, QkNorm
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings

_PLUS_ONE = Norm(plus_one=True)


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    return layered(c, settings, [Gated(c.act, c.intermediate_size)] * c.layers)


def layered(c: DecoderConfig, settings: Settings, mlps: Sequence[Body], fused: bool = False) -> Decoder:
    """A model of such layers with these MLPs. `fused`: as of `DeltaNet`."""
    delta = Branch("delta", _delta_net(settings, fused), _PLUS_ONE)
    bias, gate = settings.get("attention_bias", bool, False), settings.get("attn_output_gate", bool, True)
    if not gate:
        raise settings.wrong("attn_output_gate", "true: attention without its gate is not known here")
    sizes, norm = (c.num_heads, c.kv_num_heads, c.head_size), QkNorm(plus_one=True)
    body = Attention(*sizes, qkv_bias=bias, out_bias=bias, qk_norm=norm, gate="columns")
    branches = {"linear_attention": delta, "full_attention": Branch("attention", body, _PLUS_ONE)}
    layers = zip(_kinds(c, settings), mlps, strict=True)
    return Decoder(
        [Layer((branches[kind], Branch("mlp", mlp, _PLUS_ONE))) for kind, mlp in layers], _PLUS_ONE
    )


def _delta_net(settings: Settings, fused: bool) -> DeltaNet:
    keys = ("num_value_heads", "num_key_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim")
    heads, key_heads, key, value, taps = (
        settings.need(f"linear_{key}", int, low=1, high=1 << 16) for key in keys
    )
    if heads % key_heads:
        raise settings.wrong("linear_num_value_heads", f"a multiple of the {key_heads} key heads")
    return DeltaNet(heads, key_heads, key, value, taps, fused)


def _kinds(c: DecoderConfig, settings: Settings) -> list[str]:
    """Of each layer."""
    if kinds := settings.each("layer_types", str):
        if len(kinds) != c.layers:
            raise settings.wrong("layer_types", f"{c.layers} of them, one for each layer")
        return kinds
    every = settings.get("full_attention_interval", int, 4, low=1)
    return ["linear_attention" if (i + 1) % every else "full_attention" for i in range(c.layers)]


NAMES = names.NAMES.but(
    layer={
        "attention.q": Name("self_attn.q_proj", "attn_q", (of_gated_heads(0),)),
        "attention.gate": Name("self_attn.q_proj", "attn_q", (of_gated_heads(1),)),
        "delta.norm": Name("input_layernorm", "attn_norm"),
        "delta.qkv": Name("linear_attn.in_proj_qkv", "attn_qkv"),
        "delta.z": Name("linear_attn.in_proj_z", "attn_gate"),
        "delta.dt": Name("linear_attn.in_proj_a", "ssm_alpha"),
        "delta.beta": Name("linear_attn.in_proj_b", "ssm_beta"),
        "delta.conv": Name("linear_attn.conv1d", "ssm_conv1d", (squeezed,)),
        "delta.dt_bias": Name("linear_attn.dt_bias", "ssm_dt"),
        "delta.decay": Name("linear_attn.A_log", "ssm_a"),
        "delta.head_norm": Name("linear_attn.norm", "ssm_norm"),
        "delta.out": Name("linear_attn.out_proj", "ssm_out"),
    },
    ignored=("mtp.", "model.visual.", "model.vision_tower."),
)
OBEYED = words("attention_bias attn_output_gate full_attention_interval partial_rotary_factor")
DEFAULTS = {
    "partial_rotary_factor": 0.25,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
KINDS = frozenset({"linear_attention", "full_attention"})
ARCHITECTURE = Architecture(decoder, obeyed=OBEYED, defaults=DEFAULTS, names=NAMES, layer_types=KINDS)
