"""GLM-4 (0414): norms before and after its branches; half of each head turns, pairs side by side."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import half
from flatlm.export.layers import Attention, Branch, Decoder, Gated, Layer, Norm
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, True)
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias)
    mlp = Gated(c.act, c.intermediate_size)
    layer = Layer((Branch("attention", attention, post=Norm()), Branch("mlp", mlp, post=Norm())))
    return Decoder([layer] * c.layers)


NAMES = names.NAMES.but(
    layer={
        "attention.post_norm": Name("post_self_attn_layernorm", "post_attention_norm"),
        "mlp.gate": Name("mlp.gate_up_proj", "ffn_up", (half(0),)),
        "mlp.up": Name("mlp.gate_up_proj", "ffn_up", (half(1),)),
        "mlp.post_norm": Name("post_mlp_layernorm", "post_ffw_norm"),
    }
)
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("attention_bias partial_rotary_factor"),
    defaults={"partial_rotary_factor": 0.5, "head_dim": 128, "rms_norm_eps": 1.5625e-07},
    names=NAMES,
    interleaved=True,
)
