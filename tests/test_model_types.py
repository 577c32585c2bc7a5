"""Every model type: its export computes what the specification does, and all backends the same bits."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from flatlm.export import execute
from flatlm.export.archs import architectures, build_graph
from flatlm.export.recipe import RECIPES
from flatlm.export.sources import open_source
from flatlm.runtime.backends import open_backend
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.options import BackendOptions
from tests.spec.archs import spec
from tests.tiny_checkpoints import tiny, tiny_weights

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
TOKENS, CONTEXT = 30, BackendOptions(ctx=64)
Case = tuple[str, dict[str, Any]]


def rope(**parameters: Any) -> dict[str, Any]:
    """A config as transformers 5 writes it."""
    return {"rope_parameters": {"rope_theta": 10000.0, **parameters}, "rope_theta": None}


TWO_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
}

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
    (
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"], "num_local_experts": 6, "num_experts_per_tok": 2},
    ),
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
    ("qwen2_moe", {}),
    ("qwen2_moe", {"mlp_only_layers": [0], "norm_topk_prob": True}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"norm_topk_prob": False, "tie_word_embeddings": True}),
    ("gpt_oss", {}),
    ("gpt_oss", {**rope(**YARN, truncate=False), "tie_word_embeddings": True}),
    ("olmoe", {}),
    ("olmoe", {"norm_topk_prob": True, "num_key_value_heads": 4}),
    ("mixtral", {}),
    ("granitemoe", {}),
    ("lfm2_moe", {"tie_word_embeddings": True}),
    ("lfm2_moe", {"use_expert_bias": False, "norm_topk_prob": False, "num_dense_layers": 0}),
    ("ernie4_5_moe", {}),
    ("ernie4_5_moe", {"moe_num_shared_experts": 0, "moe_layer_start_index": 0}),
    ("gemma", {}),
    ("gemma", {"hidden_act": "gelu", "tie_word_embeddings": False, "attention_bias": True}),
    ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "num_hidden_layers": 3}),
    ("gemma2", {"layer_types": SOME[::-1], "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma3_text", {"num_hidden_layers": 6, "rope_local_base_freq": 100.0, "rope_theta": 5e5}),
    ("gemma3_text", {"layer_types": SOME, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ("gemma3_text", {"layer_types": SOME, "rope_parameters": TWO_ROPES, "final_logit_softcapping": 4.0}),
    ("olmo2", {}),
    ("olmo2", {"attention_bias": True, "num_key_value_heads": 4}),
    ("olmo3", {"num_hidden_layers": 4, "rope_scaling": YARN}),
    ("olmo3", {"layer_types": SOME, "rope_parameters": TWO_ROPES}),
    ("exaone4", {"tie_word_embeddings": True, "layer_types": ["full_attention"] * 2}),
    ("exaone4", {"sliding_window": 5, "sliding_window_pattern": "LG", "layer_types": SOME}),
    ("exaone4", {"sliding_window": 5, "sliding_window_pattern": 2}),
    ("glm4", {}),
    ("glm4", {"attention_bias": False, "tie_word_embeddings": True}),
    ("hunyuan_v1_dense", {}),
    ("hunyuan_v1_dense", rope(rope_type="dynamic", alpha=50.0, factor=1.0)),
    ("nanochat", {"final_logit_softcapping": 3.0}),
    ("nanochat", {"tie_word_embeddings": True, "final_logit_softcapping": None}),
    ("arcee", {}),
    ("arcee", {"mlp_bias": True, "attention_bias": True, "hidden_act": "gelu"}),
    ("phi", {}),
    ("gpt2", {}),
    ("gpt2", {"n_inner": 72, "scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"}),
    ("opt", {}),
    ("gpt_neox", {}),
    ("gpt_neox", {"use_parallel_residual": False, "partial_rotary_factor": None, "rotary_pct": 0.5}),
    ("bloom", {}),
    ("bloom", {"n_head": 6, "n_layer": 1}),
    ("stablelm", {"use_qkv_bias": True}),
    ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True, "partial_rotary_factor": 0.5}),
    ("starcoder2", {}),
    ("starcoder2", {"use_bias": False, "sliding_window": None, "tie_word_embeddings": False}),
    ("nemotron", {"head_dim": 8}),
    ("nemotron", {"tie_word_embeddings": True}),
    ("cohere2", {"num_hidden_layers": 4}),
    ("cohere2", {"layer_types": SOME, "attention_bias": True}),
    ("granite_swa", {}),
    ("apertus", rope(rope_type="default")),
    ("granitemoehybrid", {"layer_types": ["mamba", "attention"], "position_embedding_type": "nope"}),
    ("granitemoehybrid", {"layer_types": ["linear_attention"] * 2, "mamba_proj_bias": True}),
    ("nemotron_h", {}),
    ("nemotron_h", {"tie_word_embeddings": True, "n_groups": 1, "time_step_min": 0.05}),
    ("lfm3", {}),
    ("qwen3_next", {}),
    ("qwen3_5_moe_text", {"mlp_only_layers": [1]}),
    ("qwen3_5_moe_text", {"whole": True}),
    ("lfm2", {}),
    ("lfm2", {"conv_bias": True, "conv_L_cache": 5, "tie_word_embeddings": False}),
    ("qwen3_5_text", {}),
    ("qwen3_5_text", {"linear_num_value_heads": 2, "tie_word_embeddings": True}),
    ("falcon_h1", {}),
    ("falcon_h1", {"mamba_rms_norm": False, "mamba_conv_bias": False}),
    ("falcon_h1", {"mamba_norm_before_gate": True, "mamba_n_groups": 1}),
]
IDS = [f"{kind}-{i}" for i, (kind, _) in enumerate(CASES)]
ONCE = {kind: (kind, config) for kind, config in reversed(CASES)}.values()


@pytest.mark.parametrize(("kind", "config"), CASES, ids=IDS)
def test_the_float_graph_computes_what_the_specification_does(tmp_path, kind, config):
    folder = tiny(tmp_path, kind, **config)
    ids = np.random.default_rng(3).integers(0, 301, 24)
    given = json.loads((folder / "config.json").read_text())
    expected = spec(given, tiny_weights(given))(ids)
    actual = execute.logits(build_graph(open_source(str(folder))), ids[None])[0]
    assert np.abs(expected).max() > 0.5
    assert np.abs(expected - actual).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("kind", "config"), ONCE, ids=[kind for kind, _ in ONCE])
def test_an_exported_model_gives_the_same_bits_on_every_backend(tmp_path, kind, config):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from flatlm.export import exporter

    source = open_source(str(tiny(tmp_path / "source", kind, **config)))
    recipe = dataclasses.replace(RECIPES["edge"], windows=2, alphas=(0.5,))
    made = exporter.export(source, tmp_path / "out", recipe, tell=lambda stage: lambda done, total: None)
    artifact = open_artifact(made.path)
    ids = np.random.default_rng(0).integers(0, artifact.manifest.vocab_size, TOKENS)
    expected = computed(open_backend("numpy", artifact, CONTEXT), ids, [TOKENS])
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(computed(open_backend("ort", artifact, CONTEXT), ids, [23, 7]), expected)
    for threads, cut in ((1, [TOKENS]), (2, [13, 1, 1, 15])):
        native = NativeBackend(artifact, threads=threads, context=64)
        np.testing.assert_array_equal(computed(native, ids, cut).view(np.int32), expected.view(np.int32))


def computed(backend: Any, ids: np.ndarray, cut: list[int]) -> np.ndarray:
    parts = np.split(ids, np.cumsum(cut)[:-1])
    logits = np.concatenate([backend.forward(part, len(part)) for part in parts])
    backend.close()
    return logits


def test_every_model_type_is_here():
    assert {kind for kind, _ in CASES} == set(architectures())
