"""Mixtral: Mistral with experts in every layer, whose shares add up to one."""

from __future__ import annotations

from flatlm.export import names
from flatlm.export.architecture import Architecture
from flatlm.export.config_keys import words
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Attention, Decoder, Experts, pre_norm
from flatlm.export.names import Name
from flatlm.export.windows import SLIDING, windows
from flatlm.runtime.settings import Settings


def decoder(c: DecoderConfig, settings: Settings) -> Decoder:
    sizes = c.num_heads, c.kv_num_heads, c.head_size
    experts = settings.need("num_local_experts", int, low=1, high=1 << 16)
    kept = settings.need("num_experts_per_tok", int, low=1, high=experts)
    mlp = Experts(c.act, experts, kept, c.intermediate_size)
    reach = windows(c, settings, SLIDING)
    return Decoder([pre_norm(Attention(*sizes, window=window), mlp) for window in reach])


def _expert(weight: str, gguf: str) -> Name:
    return Name(f"block_sparse_moe.experts.{names.EXPERT}.{weight}", gguf)


ARCHITECTURE = Architecture(
    decoder,
    obeyed=words("num_local_experts num_experts_per_tok sliding_window"),
    defaults={"rope_theta": 1e6, "rms_norm_eps": 1e-5},
    names=names.NAMES.but(
        layer={
            "mlp.router": Name("block_sparse_moe.gate", "ffn_gate_inp"),
            "mlp.experts.gate": _expert("w1", "ffn_gate_exps"),
            "mlp.experts.up": _expert("w3", "ffn_up_exps"),
            "mlp.experts.down": _expert("w2", "ffn_down_exps"),
        }
    ),
)
