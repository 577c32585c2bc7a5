"""StarCoder2: layer norms, biases everywhere, an MLP without a gate."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import ACTS, Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Branch, Decoder, Layer, Norm, Plain
from flatlm.export.names import Name
from flatlm.export.windows import SLIDING, windows
from flatlm.runtime.settings import Settings

LAYER_NORM = Norm(centered=True, bias=True)


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    bias, layers = settings.get("use_bias", bool, True), []
    mlp = Branch("mlp", Plain(c.act, c.intermediate_size, bias=bias), LAYER_NORM)
    for window in windows(c, settings, SLIDING):
        sizes = c.num_heads, c.kv_num_heads, c.head_size
        attention = Attention(*sizes, qkv_bias=bias, out_bias=bias, window=window)
        layers.append(Layer((Branch("attention", attention, LAYER_NORM), mlp)))
    return Decoder(layers, LAYER_NORM)


NAMES = names.NAMES.but(
    layer={"mlp.up": Name("mlp.c_fc", "ffn_up"), "mlp.down": Name("mlp.c_proj", "ffn_down")}
)
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("use_bias sliding_window"),
    acts=ACTS,
    keys={"rms_norm_eps": "norm_epsilon"},
    defaults={"hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "tie_word_embeddings": True},
    names=NAMES,
)
