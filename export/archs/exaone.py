"""EXAONE 3 and 3.5: Llama's shape under names of its own."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Gated, pre_norm
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size)
    return Decoder([pre_norm(attention, Gated(c.act, c.intermediate_size))] * c.layers)


NAMES = names.NAMES.but(
    outer={"embedding": Name("wte", "token_embd"), "norm": Name("ln_f", "output_norm")},
    layer={
        "attention.norm": Name("ln_1", "attn_norm"),
        "attention.q": Name("attn.attention.q_proj", "attn_q"),
        "attention.k": Name("attn.attention.k_proj", "attn_k"),
        "attention.v": Name("attn.attention.v_proj", "attn_v"),
        "attention.out": Name("attn.attention.out_proj", "attn_output"),
        "mlp.norm": Name("ln_2", "ffn_norm"),
        "mlp.gate": Name("mlp.c_fc_0", "ffn_gate"),
        "mlp.up": Name("mlp.c_fc_1", "ffn_up"),
        "mlp.down": Name("mlp.c_proj", "ffn_down"),
    },
    root="transformer.",
    layers="h",
)
ARCHITECTURE = Architecture(
    decoder,
    keys={
        "num_hidden_layers": "num_layers",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
    defaults={"layer_norm_epsilon": 1e-5},
    names=NAMES,
)
