"""Phi 1.5 and 2: attention and MLP side by side after one layer norm; heads turn in part."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import ACTS, Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Branch, Decoder, Layer, Norm, Plain
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings

LAYER_NORM = Norm(centered=True, bias=True)


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=True, out_bias=True)
    mlp = Plain(c.act, c.intermediate_size, bias=True)
    branches = Branch("attention", attention, LAYER_NORM), Branch("mlp", mlp, LAYER_NORM)
    return Decoder([Layer(branches, parallel=True)] * c.layers, LAYER_NORM, head_bias=True)


NAMES = names.NAMES.but(
    outer={"norm": Name("final_layernorm", "output_norm")},
    layer={
        "attention.out": Name("self_attn.dense", "attn_output"),
        "mlp.norm": Name("input_layernorm", "attn_norm"),
        "mlp.up": Name("mlp.fc1", "ffn_up"),
        "mlp.down": Name("mlp.fc2", "ffn_down"),
    },
)
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("partial_rotary_factor"),
    acts=ACTS,
    keys={"rms_norm_eps": "layer_norm_eps"},
    defaults={"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    names=NAMES,
    only={"qk_layernorm": False},
)
