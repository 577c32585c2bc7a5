"""GPT-2: learned positions, layer norms, fused and transposed weights."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import ACTS, Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import of_qkv, transposed
from flatlm.export.layers import Attention, Branch, Decoder, Layer, Norm, Plain
from flatlm.export.names import Name
from flatlm.export.older_configs import Values
from flatlm.runtime.settings import Settings

LAYER_NORM = Norm(centered=True, bias=True)


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    mlp, layers = Branch("mlp", Plain(c.act, c.intermediate_size, bias=True), LAYER_NORM), []
    scaled = settings.get("scale_attn_weights", bool, True)
    deeper = settings.get("scale_attn_by_inverse_layer_idx", bool, False)
    for i in range(c.layers):
        scale = (c.head_size**-0.5 if scaled else 1.0) / (i + 1 if deeper else 1)
        sizes = c.num_heads, c.num_heads, c.head_size
        attention = Attention(*sizes, qkv_bias=True, out_bias=True, turned=False, scale=scale)
        layers.append(Layer((Branch("attention", attention, LAYER_NORM), mlp)))
    return Decoder(layers, LAYER_NORM, positions=True)


def _as_new(values: Values) -> Values:
    inner, hidden = values.get("n_inner"), values.get("n_embd")
    return {**values, "n_inner": 4 * hidden if inner is None and isinstance(hidden, int) else inner}


NAMES = names.NAMES.but(
    outer={
        "embedding": Name("wte", "token_embd"),
        "positions": Name("wpe", "position_embd"),
        "norm": Name("ln_f", "output_norm"),
    },
    layer={
        "attention.norm": Name("ln_1", "attn_norm"),
        **{f"attention.{x}": Name("attn.c_attn", "attn_qkv", (transposed, of_qkv(x))) for x in "qkv"},
        "attention.out": Name("attn.c_proj", "attn_output", (transposed,)),
        "mlp.norm": Name("ln_2", "ffn_norm"),
        "mlp.up": Name("mlp.c_fc", "ffn_up", (transposed,)),
        "mlp.down": Name("mlp.c_proj", "ffn_down", (transposed,)),
    },
    root="transformer.",
    layers="h",
)
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("scale_attn_weights scale_attn_by_inverse_layer_idx"),
    acts=ACTS,
    keys={
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
    defaults={
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "n_positions": 1024,
    },
    names=NAMES,
    as_new=_as_new,
)
