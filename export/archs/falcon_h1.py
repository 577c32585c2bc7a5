"""Falcon-H1: attention and Mamba 2 side by side in each layer, and twelve multipliers, which are folded."""

from __future__ import annotations

import dataclasses

from flatlm.export import mamba, names
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Beside, Branch, Decoder, Gated, Layer
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    given, out, key = (
        _factor(settings, f"{part}_multiplier") for part in ("attention_in", "attention_out", "key")
    )
    bias = settings.get("attention_bias", bool, False)
    if bias and given != 1:
        raise settings.wrong("attention_in_multiplier", "1, where queries, keys and values have a bias")
    # of queries and keys, and of keys alone, into the scores' scale; of values into what comes out
    scale = c.head_size**-0.5 * given**2 * key
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias, out_bias=bias, scale=scale)
    ssm = dataclasses.replace(
        mamba.mamba2(settings, c.hidden_size),
        norm=settings.get("mamba_rms_norm", bool, False),
        norm_first=settings.get("mamba_norm_before_gate", bool, True),
        factors=_factors(settings, "ssm_multipliers", 5),
        scale_in=_factor(settings, "ssm_in_multiplier"),
    )
    mixers = (("mamba", ssm, _factor(settings, "ssm_out_multiplier")), ("attention", attention, out * given))
    gate, down = _factors(settings, "mlp_multipliers", 2)
    mlp = Gated(c.act, c.intermediate_size, bias=settings.get("mlp_bias", bool, False), gate_scale=gate)
    layer = Layer((Branch("mixer", Beside(mixers)), Branch("mlp", mlp, scale=down)))
    return Decoder(
        [layer] * c.layers,
        embedding_scale=_factor(settings, "embedding_multiplier"),
        logits_scale=_factor(settings, "lm_head_multiplier"),
    )


def _factor(settings: Settings, key: str) -> float:
    return settings.get(key, float, 1.0, above=0, high=1e6)


def _factors(settings: Settings, key: str, count: int) -> tuple[float, ...]:
    found = settings.each(key, float, low=-1e6, high=1e6) or [1.0] * count
    if len(found) != count:
        raise settings.wrong(key, f"{count} numbers")
    return tuple(found)


NAMES = names.NAMES.but(
    outer={"norm": Name("final_layernorm", "output_norm")},
    layer={
        **mamba.names("mamba"),
        "mixer.norm": Name("input_layernorm", "attn_norm"),
        "mlp.norm": Name("pre_ff_layernorm", "ffn_norm"),
        "mlp.gate": Name("feed_forward.gate_proj", "ffn_gate"),
        "mlp.up": Name("feed_forward.up_proj", "ffn_up"),
        "mlp.down": Name("feed_forward.down_proj", "ffn_down"),
    },
)
ARCHITECTURE = Architecture(
    decoder,
    obeyed=mamba.OBEYED
    | words("""
        attention_bias mlp_bias mamba_rms_norm mamba_norm_before_gate embedding_multiplier lm_head_multiplier
        key_multiplier attention_in_multiplier attention_out_multiplier ssm_multipliers ssm_in_multiplier
        ssm_out_multiplier mlp_multipliers
    """),
    defaults={"mamba_d_ssm": 1024},
    names=NAMES,
)
