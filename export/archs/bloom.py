"""BLOOM: scores that fall with distance (ALiBi), layer norms, one of them after the embedding."""

from __future__ import annotations

import math

from flatlm.export import names
from flatlm.export.architecture import ACTS, Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import by_head, of_qkv
from flatlm.export.layers import Attention, Branch, Decoder, Layer, Norm, Plain
from flatlm.export.names import Name
from flatlm.export.older_configs import Values
from flatlm.runtime.settings import Settings

LAYER_NORM = Norm(centered=True, bias=True)


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    attention = Attention(
        c.num_heads,
        c.num_heads,
        c.head_size,
        qkv_bias=True,
        out_bias=True,
        turned=False,
        slopes=slopes(c.num_heads),
    )
    mlp = Plain(c.act, c.intermediate_size, bias=True)
    layer = Layer((Branch("attention", attention, LAYER_NORM), Branch("mlp", mlp, LAYER_NORM)))
    return Decoder([layer] * c.layers, LAYER_NORM, embedding_norm=LAYER_NORM)


def slopes(heads: int) -> tuple[float, ...]:
    """ALiBi's (Press et al., arXiv 2108.12409): a geometric row; beside a power of two, of the next row's
    every other one.
    """
    whole = 1 << int(math.log2(heads))
    row = [2.0 ** (-8 * (i + 1) / whole) for i in range(whole)]
    return tuple(row + [2.0 ** (-4 * (2 * i + 1) / whole) for i in range(heads - whole)])


def _as_new(values: Values) -> Values:
    hidden = values.get("hidden_size") or values.get("n_embed")
    wide = {"intermediate_size": 4 * hidden} if isinstance(hidden, int) else {}
    longest = values.get("max_position_embeddings") or values.get("seq_length") or 2048
    return {**values, **wide, "hidden_size": hidden, "max_position_embeddings": longest}


_QKV = "self_attention.query_key_value"
NAMES = names.NAMES.but(
    outer={
        "embedding": Name("word_embeddings", "token_embd"),
        "embedding_norm": Name("word_embeddings_layernorm", "token_embd_norm"),
        "norm": Name("ln_f", "output_norm"),
    },
    layer={
        **{f"attention.{x}": Name(_QKV, "attn_qkv", (by_head(x),), (of_qkv(x),)) for x in "qkv"},
        "attention.out": Name("self_attention.dense", "attn_output"),
        "mlp.up": Name("mlp.dense_h_to_4h", "ffn_up"),
        "mlp.down": Name("mlp.dense_4h_to_h", "ffn_down"),
    },
    root="transformer.",
    layers="h",
)
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("alibi"),
    acts=ACTS,
    keys={
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "rms_norm_eps": "layer_norm_epsilon",
    },
    defaults={
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    names=NAMES,
    only={"apply_residual_connection_post_layernorm": False},
    as_new=_as_new,
)
