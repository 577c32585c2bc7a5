"""Gemma: Llama's shape with norms stored as their distance from one, and an embedding times √hidden."""

from __future__ import annotations

from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Branch, Decoder, Gated, Layer, Norm
from flatlm.runtime.settings import Settings

PLUS_ONE = Norm(plus_one=True)
TANH = {"gelu": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}  # "gelu", of the first files, never meant erf


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias = settings.get("attention_bias", bool, False)
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qkv_bias=bias, out_bias=bias)
    mlp = Gated(c.act, c.intermediate_size)
    layer = Layer((Branch("attention", attention, PLUS_ONE), Branch("mlp", mlp, PLUS_ONE)))
    return Decoder([layer] * c.layers, PLUS_ONE, embedding_scale=c.hidden_size**0.5)


ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("attention_bias hidden_activation"),
    acts=TANH,
    defaults={"hidden_act": "gelu_pytorch_tanh", "head_dim": 256, "tie_word_embeddings": True},
)
