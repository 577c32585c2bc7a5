"""Nemotron and Minitron, dense: layer norms stored as their distance from one, relu²; heads turn in part."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import ACTS, Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Branch, Decoder, Layer, Norm, Plain
from flatlm.export.older_configs import Values
from flatlm.runtime.settings import Settings

LAYER_NORM = Norm(centered=True, plus_one=True, bias=True)


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias, out_bias=bias)
    mlp = Plain(c.act, c.intermediate_size, bias=settings.get("mlp_bias", bool, False))
    layer = Layer((Branch("attention", attention, LAYER_NORM), Branch("mlp", mlp, LAYER_NORM)))
    return Decoder([layer] * c.layers, LAYER_NORM)


def _as_new(values: Values) -> Values:
    share = values.get("partial_rotary_factor") or values.get("rope_percent") or 0.5
    left = {key: value for key, value in values.items() if key != "rope_percent"}
    return {**left, "partial_rotary_factor": share}


ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("attention_bias mlp_bias partial_rotary_factor"),
    acts=ACTS,
    keys={"rms_norm_eps": "norm_eps"},
    defaults={"hidden_act": "relu2", "norm_eps": 1e-5},
    names=names.NAMES,
    as_new=_as_new,
)
