"""nanochat: norms without weights, relu², a cap on the logits, and heads that turn the other way."""

from __future__ import annotations

import dataclasses

from flatlm.export import names
from flatlm.export.architecture import ACTS, Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Branch, Decoder, Layer, Norm, Plain, QkNorm
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias, norm = settings.get("attention_bias", bool, False), Norm(weighted=False)
    turning = dataclasses.replace(c.rotary(), frequency=-c.rotary().frequency)
    attention = Attention(
        c.num_heads,
        c.kv_num_heads,
        c.head_size,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=QkNorm(weighted=False),
        rotary=turning,
    )
    mlp = Plain(c.act, c.intermediate_size)
    layer = Layer((Branch("attention", attention, norm), Branch("mlp", mlp, norm)))
    softcap = settings.get("final_logit_softcapping", float, 0.0, low=0)
    return Decoder([layer] * c.layers, norm, embedding_norm=norm, softcap=softcap)


NAMES = names.NAMES.but(layer={"mlp.up": Name("mlp.fc1", "ffn_up"), "mlp.down": Name("mlp.fc2", "ffn_down")})
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("attention_bias final_logit_softcapping"),
    acts=ACTS,
    defaults={"hidden_act": "relu2", "final_logit_softcapping": 15.0},
    names=NAMES,
)
