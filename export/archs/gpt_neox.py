"""GPT-NeoX and Pythia: attention and MLP side by side, each with a layer norm; heads turn in part."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import ACTS, Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import by_head
from flatlm.export.layers import Attention, Branch, Decoder, Layer, Norm, Plain
from flatlm.export.names import Name
from flatlm.export.older_configs import Values
from flatlm.runtime.settings import Settings

LAYER_NORM = Norm(centered=True, bias=True)


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, True)
    attention = Attention(c.num_heads, c.num_heads, c.head_size, qkv_bias=bias, out_bias=bias)
    mlp = Plain(c.act, c.intermediate_size, bias=True)
    branches = Branch("attention", attention, LAYER_NORM), Branch("mlp", mlp, LAYER_NORM)
    parallel = settings.get("use_parallel_residual", bool, True)
    return Decoder([Layer(branches, parallel=parallel)] * c.layers, LAYER_NORM)


def _as_new(values: Values) -> Values:
    """Its configs have names of their own for how heads turn."""
    theta = values.get("rotary_emb_base") or values.get("rope_theta") or 1e4
    share = values.get("rotary_pct") or values.get("partial_rotary_factor") or 0.25
    left = {key: value for key, value in values.items() if key not in ("rotary_emb_base", "rotary_pct")}
    return {**left, "rope_theta": theta, "partial_rotary_factor": share}


NAMES = names.NAMES.but(
    outer={
        "embedding": Name("embed_in", "token_embd"),
        "norm": Name("final_layer_norm", "output_norm"),
        "head": Name("embed_out", "output"),
    },
    layer={
        **{f"attention.{x}": Name("attention.query_key_value", "attn_qkv", (by_head(x),)) for x in "qkv"},
        "attention.out": Name("attention.dense", "attn_output"),
        "mlp.up": Name("mlp.dense_h_to_4h", "ffn_up"),
        "mlp.down": Name("mlp.dense_4h_to_h", "ffn_down"),
    },
    root="gpt_neox.",
)
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("attention_bias use_parallel_residual partial_rotary_factor"),
    acts=ACTS,
    keys={"rms_norm_eps": "layer_norm_eps"},
    defaults={"hidden_act": "gelu", "layer_norm_eps": 1e-5},
    names=NAMES,
    as_new=_as_new,
)
