"""Gemma 2: Gemma with norms after its branches too, a window in every other layer, and softcaps."""

from __future__ import annotations

import dataclasses

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.archs.gemma import PLUS_ONE, TANH
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Branch, Decoder, Gated, Layer, QkNorm
from flatlm.export.names import Name
from flatlm.export.older_configs import with_layer_types
from flatlm.export.windows import kinds, windows
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    return sandwiched(c, settings, None)


def sandwiched(c: DecoderConfig, settings: Settings, qk_norm: QkNorm | None) -> Decoder:
    """Norms before and after attention and MLP, layers of two kinds."""
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(
        c.num_heads,
        c.kv_num_heads,
        c.head_size,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=qk_norm,
        scale=settings.get("query_pre_attn_scalar", float, 256.0, above=0) ** -0.5,
        softcap=settings.get("attn_logit_softcapping", float, 0.0, low=0),
    )
    mlp = Branch("mlp", Gated(c.act, c.intermediate_size), PLUS_ONE, PLUS_ONE)
    layers = []
    for kind, window in zip(kinds(c, settings), windows(c, settings), strict=True):
        body = dataclasses.replace(attention, window=window, rotary=c.rotary(kind))
        layers.append(Layer((Branch("attention", body, PLUS_ONE, PLUS_ONE), mlp)))
    return Decoder(
        layers,
        PLUS_ONE,
        embedding_scale=c.hidden_size**0.5,
        softcap=settings.get("final_logit_softcapping", float, 0.0, low=0),
    )


NAMES = names.NAMES.but(
    layer={
        "attention.post_norm": Name("post_attention_layernorm", "post_attention_norm"),
        "mlp.norm": Name("pre_feedforward_layernorm", "ffn_norm"),
        "mlp.post_norm": Name("post_feedforward_layernorm", "post_ffw_norm"),
    }
)
OBEYED = words("""
    attention_bias query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping sliding_window
    sliding_window_pattern _sliding_window_pattern
""")
DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
ARCHITECTURE = Architecture(
    decoder,
    obeyed=OBEYED | words("hidden_act"),
    acts=TANH,
    keys={"hidden_act": "hidden_activation"},
    defaults={**DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    names=NAMES,
    as_new=lambda values: with_layer_types(values, 2),
)
