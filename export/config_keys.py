"""Which keys of a config.json change what a decoder computes, and with which values they do not.

transformers reads some of these keys for the architectures flatlm knows, other readers others, and a new
version reads more. So what flatlm does not obey must be at a value that changes nothing, where the key is one
of NEUTRAL or its name says that it is about what is computed. Any other key is a remark: names, training,
other tools.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def words(text: str) -> frozenset[str]:
    """A table of keys, written as text."""
    return frozenset(text.split())


# Read by export/config.py and sources/, which refuse the values that the blocks cannot do. What an
# architecture reads beyond these it says itself (archs/).
OBEYED = words("""
    model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim max_position_embeddings rms_norm_eps tie_word_embeddings hidden_act
    rope_theta rope_scaling rope_parameters partial_rotary_factor
    original_max_position_embeddings sliding_window use_sliding_window max_window_layers layer_types
    num_experts num_local_experts n_routed_experts quantization_config
""")
# Their names sound like more than they do in a model without experts.
HARMLESS = words("""
    num_experts_per_tok expert_interval expert_capacity shared_expert_intermediate_size
""")

# Key → the values with which it changes nothing; null is one for each.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "attention_chunk_size": (),
    "attention_multiplier": (),
    "query_pre_attn_scalar": (),
    "clip_qkv": (),
    "no_rope_layers": ([],),
    "hidden_activation": ("silu", "swish"),
    "rotary_pct": (1.0,),
    "rotary_percent": (1.0,),
}
_TELLING = re.compile(
    r"causal|bidirectional|(^|_)m?rope(_|$)|rotary|alibi|window|soft_?cap|clamp|qk_|expert"
    r"|parallel_(residual|attn)|attention_sink"
)
_FACTOR = re.compile(r"multiplier|(^|_)scal(e|ed|ing|ar)(_|$)")
_TRAINING = re.compile(r"loss|grad|train|lora|init|optim|router")


def refused(config: Mapping[str, Any], obeyed: frozenset[str]) -> list[str]:
    """Each key, with its value, that would change what is computed and that flatlm does not obey.

    `obeyed`: those that the architecture does, beyond OBEYED.
    """
    return [
        f"{key} {value!r:.60}"
        for key, value in config.items()
        if key not in OBEYED | obeyed | HARMLESS and not _is_neutral(key, value)
    ]


def _is_neutral(key: str, value: Any) -> bool:
    if value is None:
        return True
    if key in NEUTRAL:
        return value in NEUTRAL[key]
    name = key.lower()
    if _TRAINING.search(name) or not (_TELLING.search(name) or _FACTOR.search(name)):
        return True
    if _FACTOR.search(name):
        return value is False or (value is not True and value == 1)
    return value in (0, "", [], {})
