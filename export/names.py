"""What the weights of a decoder are called, by their place: in Hugging Face's checkpoints and in GGUF files.

A place in a layer is a node's name there, where the linears that a node fuses have places of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

# place: Hugging Face, GGUF
_OUTER = {
    "embedding": ("model.embed_tokens", "token_embd"),
    "norm": ("model.norm", "output_norm"),
    "head": ("lm_head", "output"),
}
_LAYER = {
    "attention.norm": ("input_layernorm", "attn_norm"),
    "attention.q": ("self_attn.q_proj", "attn_q"),
    "attention.k": ("self_attn.k_proj", "attn_k"),
    "attention.v": ("self_attn.v_proj", "attn_v"),
    "attention.q_norm": ("self_attn.q_norm", "attn_q_norm"),
    "attention.k_norm": ("self_attn.k_norm", "attn_k_norm"),
    "attention.out": ("self_attn.o_proj", "attn_output"),
    "mlp.norm": ("post_attention_layernorm", "ffn_norm"),
    "mlp.gate": ("mlp.gate_proj", "ffn_gate"),
    "mlp.up": ("mlp.up_proj", "ffn_up"),
    "mlp.down": ("mlp.down_proj", "ffn_down"),
}


def outer(place: str) -> str:
    """Of embedding, last norm or head, without .weight or .bias."""
    return _OUTER[place][0]


def in_layer(place: str) -> str:
    """Of a place in a layer, without the layer."""
    return _LAYER[place][0]


def within(layer: int, place: str) -> str:
    """Of a place in this layer."""
    return f"model.layers.{layer}.{in_layer(place)}"


def of_gguf(name: str) -> str | None:
    """blk.3.attn_q.weight → model.layers.3.self_attn.q_proj.weight; None for what has no place."""
    stem, _, kind = name.rpartition(".")
    block, _, rest = stem.partition(".")
    if block != "blk":
        found = _hf(_OUTER).get(stem)
        return found and f"{found}.{kind}"
    index, _, part = rest.partition(".")
    found = _hf(_LAYER).get(part)
    return found and f"model.layers.{index}.{found}.{kind}"


def _hf(table: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    return {gguf: hf for hf, gguf in table.values()}
