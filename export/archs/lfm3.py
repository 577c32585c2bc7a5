"""LFM3: LFM2's convolutions, norms around every branch, and attention with a gate a head and windows."""

from __future__ import annotations

import dataclasses
from typing import Any

from flatlm.export import names
from flatlm.export.archs import lfm2
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Branch, Decoder, Gated, Layer, Norm, QkNorm, ShortConv
from flatlm.export.names import Name
from flatlm.export.windows import FULL, SLIDING, kinds, windows
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    conv = ShortConv(settings.need("conv_L_cache", int, low=2), settings.get("conv_bias", bool, False))
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(
        c.num_heads,
        c.kv_num_heads,
        c.head_size,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=QkNorm(),
        gate="heads" if settings.get("use_attention_gate", bool, True) else "",
    )
    post = Norm() if settings.get("use_sandwich_norm", bool, True) else None
    mlp = Branch("mlp", Gated(c.act, c.intermediate_size), post=post)
    layers = []
    for kind, window in zip(kinds(c, settings), windows(c, settings), strict=True):
        mixer = Branch("conv", conv, post=post)
        if kind != "conv":
            turned = dataclasses.replace(attention, window=window, rotary=c.rotary(kind))
            mixer = Branch("attention", turned, post=post)
        layers.append(Layer((mixer, mlp)))
    return Decoder(layers)


def _as_new(values: dict[str, Any]) -> dict[str, Any]:
    """The kinds of layers and their rotations that a config leaves to its class."""
    layers, given = values.get("num_hidden_layers"), values.get("layer_types")
    if not given and type(layers) is int:
        given = [FULL if i % 4 == 2 else SLIDING if i and i % 4 == 0 else "conv" for i in range(layers)]
    ropes = values.get("rope_parameters") or {
        SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
    }
    return {**values, "layer_types": given, "rope_parameters": ropes}


ARCHITECTURE = dataclasses.replace(
    lfm2.ARCHITECTURE,
    decoder=decoder,
    obeyed=words("""
        conv_L_cache conv_bias attention_bias use_attention_gate use_sandwich_norm partial_rotary_factor
        sliding_window
    """),
    defaults={"norm_eps": 1e-5, "conv_L_cache": 7, "head_dim": 128, "sliding_window": 256},
    names=lfm2.NAMES.but(
        layer={
            "attention.gate": Name("self_attn.gate_proj", "attn_gate"),
            "attention.q_norm": names.NAMES.layer["attention.q_norm"],
            "attention.k_norm": names.NAMES.layer["attention.k_norm"],
            "attention.out": names.NAMES.layer["attention.out"],
            "attention.post_norm": Name("post_operator_norm", "post_attention_norm"),
            "conv.post_norm": Name("post_operator_norm", "post_attention_norm"),
            "mlp.post_norm": Name("post_ffn_norm", "post_ffw_norm"),
        }
    ),
    layer_types=frozenset({"conv", FULL, SLIDING}),
    rope_by_layer_type=True,
    as_new=_as_new,
)
