"""LFM2 and LFM2.5 without experts: gated short convolutions, and attention with normed heads between them."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.folds import squeezed
from flatlm.export.layers import Attention, Branch, Decoder, Gated, Layer, QkNorm, ShortConv
from flatlm.export.names import Name
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    mlp, branches = Branch("mlp", Gated(c.act, _width(c, settings))), mixers(c, settings)
    return Decoder([Layer((branches[kind], mlp)) for kind in kinds(c, settings)])


def mixers(c: DecoderConfig, settings: Settings) -> dict[str, Branch]:
    """By what layer_types calls them."""
    conv = ShortConv(settings.get("conv_L_cache", int, 3, low=2), settings.get("conv_bias", bool, False))
    attention = Attention(c.num_heads, c.kv_num_heads, c.head_size, qk_norm=QkNorm())
    return {"conv": Branch("conv", conv), "full_attention": Branch("attention", attention)}


def kinds(c: DecoderConfig, settings: Settings) -> list[str]:
    """Of each layer."""
    if found := settings.each("layer_types", str):
        if len(found) != c.layers:
            raise settings.wrong("layer_types", f"{c.layers} of them, one for each layer")
        return found
    attended = settings.each("full_attn_idxs", int) or range(c.layers)
    return ["full_attention" if i in attended else "conv" for i in range(c.layers)]


def _width(c: DecoderConfig, settings: Settings) -> int:
    """Of the MLP: two thirds of what config.json says, times a factor, rounded up."""
    width = settings.get("block_ff_dim", int, c.intermediate_size, low=1, high=1 << 28)
    if not settings.get("block_auto_adjust_ff_dim", bool, True):
        return width
    factor = settings.get("block_ffn_dim_multiplier", float, 1.0, above=0, high=1e3)
    multiple = settings.get("block_multiple_of", int, 256, low=1, high=1 << 20)
    return -(-int(factor * int(2 * width / 3)) // multiple) * multiple


_NORM = Name("operator_norm", "attn_norm")
NAMES = names.NAMES.but(
    outer={"norm": Name("embedding_norm", "token_embd_norm")},
    layer={
        "conv.norm": _NORM,
        "conv.in": Name("conv.in_proj", "shortconv.in_proj"),
        "conv.conv": Name("conv.conv", "shortconv.conv", (squeezed,), ()),
        "conv.out": Name("conv.out_proj", "shortconv.out_proj"),
        "attention.norm": _NORM,
        "attention.q_norm": Name("self_attn.q_layernorm", "attn_q_norm"),
        "attention.k_norm": Name("self_attn.k_layernorm", "attn_k_norm"),
        "attention.out": Name("self_attn.out_proj", "attn_output"),
        "mlp.norm": Name("ffn_norm", "ffn_norm"),
        "mlp.gate": Name("feed_forward.w1", "ffn_gate"),
        "mlp.up": Name("feed_forward.w3", "ffn_up"),
        "mlp.down": Name("feed_forward.w2", "ffn_down"),
    },
)
ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("conv_L_cache conv_bias full_attn_idxs block_ff_dim block_ffn_dim_multiplier"),
    keys={"rms_norm_eps": "norm_eps"},
    defaults={"rope_theta": 1e6, "intermediate_size": 12288},
    names=NAMES,
    layer_types=frozenset({"conv", "full_attention"}),
)
