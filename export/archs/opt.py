"""OPT, but for the 350M whose norms stand after its branches: learned positions, layer norms, ReLU."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import ACTS, Architecture
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Branch, Decoder, Layer, Norm, Plain
from flatlm.export.names import Name
from flatlm.export.older_configs import Values
from flatlm.runtime.settings import Settings

LAYER_NORM = Norm(centered=True, bias=True)
_FIRST = 2  # row of the position 0


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    sizes = c.num_heads, c.num_heads, c.head_size
    attention = Attention(*sizes, qkv_bias=True, out_bias=True, turned=False)
    mlp = Plain(c.act, c.intermediate_size, bias=True)
    layer = Layer((Branch("attention", attention, LAYER_NORM), Branch("mlp", mlp, LAYER_NORM)))
    return Decoder([layer] * c.layers, LAYER_NORM, positions=True, first_position=_FIRST)


def _as_new(values: Values) -> Values:
    """What the embedding is projected from is as wide as the stream."""
    same = values.get("word_embed_proj_dim") in (None, values.get("hidden_size"))
    return {**values, "word_embed_proj_dim": None if same else values["word_embed_proj_dim"]}


NAMES = names.NAMES.but(
    outer={
        "positions": Name("embed_positions", "position_embd"),
        "norm": Name("final_layer_norm", "output_norm"),
    },
    layer={
        "attention.norm": Name("self_attn_layer_norm", "attn_norm"),
        "attention.out": Name("self_attn.out_proj", "attn_output"),
        "mlp.norm": Name("final_layer_norm", "ffn_norm"),
        "mlp.up": Name("fc1", "ffn_up"),
        "mlp.down": Name("fc2", "ffn_down"),
    },
    root="model.decoder.",
)
ARCHITECTURE = Architecture(
    decoder,
    acts=ACTS,
    keys={"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
    defaults={"activation_function": "relu", "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    names=NAMES,
    only={
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
        "word_embed_proj_dim": "that of hidden_size",
    },
    as_new=_as_new,
)
