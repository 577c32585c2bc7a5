"""Apertus: Llama's shape with norms of heads and an MLP of xIELU without a gate."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Plain, QkNorm, pre_norm
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(
        c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias, out_bias=bias, qk_norm=QkNorm()
    )
    return Decoder([pre_norm(attention, Plain(c.act, c.intermediate_size))] * c.layers)


_ACT = {part: Name(f"mlp.act_fn.{part}", f"xielu_{part}") for part in ("alpha_p", "alpha_n", "beta", "eps")}
_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 12e6,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
NAMES = names.NAMES.but(
    layer={
        "attention.norm": Name("attention_layernorm", "attn_norm"),
        "mlp.norm": Name("feedforward_layernorm", "ffn_norm"),
        **{f"mlp.act.{part}": name for part, name in _ACT.items()},
    }
)
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("attention_bias"),
    acts={"xielu": "xielu"},
    defaults={"hidden_act": "xielu", "rms_norm_eps": 1e-5, "rope_parameters": _ROPE},
    names=NAMES,
    only={"qk_norm": True, "post_norm": False, "mlp_bias": False},
)
