"""StableLM: Llama's shape with layer norms, also of each head; a part of each head turns."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Branch, Decoder, Gated, Layer, Norm, QkNorm
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings

LAYER_NORM = Norm(centered=True, bias=True)
HEAD_NORMS = QkNorm("own", centered=True, apart=True)


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    normed = settings.get("qk_layernorm", bool, False)
    attention = Attention(
        c.num_heads,
        c.kv_num_heads,
        c.head_size,
        qkv_bias=settings.get("use_qkv_bias", bool, False),
        qk_norm=HEAD_NORMS if normed else None,
    )
    parallel = settings.get("use_parallel_residual", bool, False)
    norm = Norm(centered=True, bias=True, place="one_norm") if parallel else LAYER_NORM
    mlp = Branch("mlp", Gated(c.act, c.intermediate_size), norm)
    layer = Layer((Branch("attention", attention, LAYER_NORM), mlp), parallel=parallel)
    return Decoder([layer] * c.layers, LAYER_NORM)


NAMES = names.NAMES.but(
    layer={
        "attention.q_norm": Name("self_attn.q_layernorm", "attn_q_norm"),
        "attention.k_norm": Name("self_attn.k_layernorm", "attn_k_norm"),
        "mlp.one_norm": Name("input_layernorm", "attn_norm"),
    }
)
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("use_qkv_bias qk_layernorm use_parallel_residual partial_rotary_factor"),
    keys={"rms_norm_eps": "layer_norm_eps"},
    defaults={"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
    names=NAMES,
)
