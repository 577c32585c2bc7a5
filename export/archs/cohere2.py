"""Command R7B: attention and MLP side by side after one layer norm; layers that see all do not turn."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Branch, Decoder, Gated, Layer, Norm
from flatlm.export.names import Name
from flatlm.export.older_configs import Values, with_layer_types
from flatlm.export.rope import still
from flatlm.export.windows import SLIDING, kinds, windows
from flatlm.runtime.settings import Settings

CENTERED = Norm(centered=True)


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias, layers = settings.get("attention_bias", bool, False), []
    mlp = Branch("mlp", Gated(c.act, c.intermediate_size), CENTERED)
    for kind, window in zip(kinds(c, settings), windows(c, settings), strict=True):
        attention = Attention(
            c.num_heads,
            c.kv_num_heads,
            c.head_size,
            qkv_bias=bias,
            out_bias=bias,
            window=window,
            rotary=c.rotary() if kind == SLIDING else still(c.rotary()),
        )
        layers.append(Layer((Branch("attention", attention, CENTERED), mlp), parallel=True))
    return Decoder(layers, CENTERED, logits_scale=settings.get("logit_scale", float, 0.0625, above=0))


def _as_new(values: Values) -> Values:
    return with_layer_types(values, values.get("sliding_window_pattern") or 4)


NAMES = names.NAMES.but(layer={"mlp.norm": Name("input_layernorm", "attn_norm")})
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("attention_bias sliding_window sliding_window_pattern logit_scale"),
    keys={"rms_norm_eps": "layer_norm_eps"},
    defaults={"layer_norm_eps": 1e-5, "sliding_window": 4096, "tie_word_embeddings": True},
    names=NAMES,
    interleaved=True,
    as_new=_as_new,
)
