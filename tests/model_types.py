"""The configurations of model types that tests export: one a line, data and nothing else.

Each is the model type and what its config.json has beside the usual (tests/tiny_checkpoints.py).
"""

from __future__ import annotations

from typing import Any

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.0, 4.0],
    "partial_rotary_factor": 0.75,
}
MINICPM4 = {key: value for key, value in LONG.items() if key != "partial_rotary_factor"}
MINICPM4 |= {"original_max_position_embeddings": 16}
SOME = ["sliding_attention", "full_attention"]
Case = tuple[str, dict[str, Any]]


def rope(**parameters: Any) -> dict[str, Any]:
    """A config as transformers 5 writes it."""
    return {"rope_parameters": {"rope_theta": 10000.0, **parameters}, "rope_theta": None}


# One configuration a line: the model type, and what its config.json has beside the usual.
CASES: list[Case] = [
    ("llama", rope(rope_type="linear", factor=2.0)),
    ("llama", rope(rope_type="dynamic", factor=2.0)),
    ("llama", rope(**YARN)),
    ("llama", rope(**YARN, truncate=False, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3)),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
    ("qwen2", rope(**YARN, mscale=0.7, mscale_all_dim=0.4)),
    ("qwen3", {"head_dim": 14, "tie_word_embeddings": True}),
    ("qwen3", {"head_dim": 12, "attention_bias": True, **rope(**YARN)}),
    ("mistral", {"sliding_window": 5, "head_dim": 14}),
    ("ministral", {"sliding_window": 5, "layer_types": SOME, "head_dim": 8}),
    ("ministral3", rope(**YARN, llama_4_scaling_beta=0.1, mscale=1.0, mscale_all_dim=1.0)),
    ("smollm3", {}),
    ("smollm3", {"no_rope_layers": [0, 1, 1, 0], "tie_word_embeddings": True, "attention_bias": True}),
    ("phi3", {"sliding_window": 5, "tie_word_embeddings": True}),
    ("phi3", {"rope_scaling": LONG, "hidden_size": 32, "original_max_position_embeddings": 16}),
    ("phi3", {**rope(**LONG), "hidden_size": 32, "original_max_position_embeddings": 128}),
    ("granite", {}),
    ("granite", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("granitemoehybrid", {}),
    ("granitemoehybrid", {"position_embedding_type": None, "tie_word_embeddings": True}),
    ("minicpm", {"tie_word_embeddings": True}),
    ("minicpm", {"rope_scaling": MINICPM4, "hidden_size": 24}),
    ("ernie4_5", {}),
    ("ernie4_5", {"use_bias": True, "tie_word_embeddings": True}),
    ("helium", {}),
    ("seed_oss", {}),
    ("seed_oss", {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True}),
    ("internlm3", rope(rope_type="dynamic", factor=6.0)),
    ("internlm3", {"bias": True, "qkv_bias": True}),
    ("exaone", {}),
]
