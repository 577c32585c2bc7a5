"""OLMo 2: norms after attention and MLP alone, and one norm of all queries and one of all keys."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Branch, Decoder, Gated, Layer, Norm, QkNorm
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(
        c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias, out_bias=bias, qk_norm=QkNorm("all")
    )
    return Decoder([post_normed(attention, Gated(c.act, c.intermediate_size))] * c.layers)


def post_normed(attention: Attention, mlp: Gated) -> Layer:
    """A norm after each branch, none before it."""
    return Layer((Branch("attention", attention, None, Norm()), Branch("mlp", mlp, None, Norm())))


NAMES = names.NAMES.but(
    layer={
        "attention.post_norm": Name("post_attention_layernorm", "post_attention_norm"),
        "mlp.post_norm": Name("post_feedforward_layernorm", "post_ffw_norm"),
    }
)
ARCHITECTURE = Architecture(
    decoder, obeyed=words("attention_bias"), defaults={"rms_norm_eps": 1e-5}, names=NAMES
)
