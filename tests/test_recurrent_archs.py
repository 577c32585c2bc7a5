"""Configs of recurrent model types: what older ones leave out, and what is refused by key and value."""

from __future__ import annotations

import pytest

from flatlm.export.archs import build_graph
from flatlm.export.sources import open_source
from flatlm.runtime.errors import FlatlmError
from flatlm.runtime.format.graph import Graph
from tests.tiny_checkpoints import tiny

MAMBA = {"layer_types": ["mamba", "attention"]}


def graph_of(folder, model_type: str, **changes) -> Graph:
    return build_graph(open_source(str(tiny(folder, model_type, **changes))))


def mixers(graph: Graph) -> list[str]:
    """Of each layer, the last word of what mixes its tokens."""
    words = {"CausalConv": "conv", "LinearAttention": "matrix", "Attend": "attend"}
    return ["+".join(words[node.op] for node in layer if node.op in words) for layer in graph.layers]


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        ("lfm2", {"layer_types": None, "full_attn_idxs": [1]}, ["conv", "attend", "conv"]),
        (
            "qwen3_5_text",
            {"layer_types": None, "full_attention_interval": 2},
            ["conv+matrix", "attend", "conv+matrix"],
        ),
        ("granitemoehybrid", MAMBA, ["conv+matrix", "attend"]),
        ("nemotron_h", {"layers_block_type": None, "hybrid_override_pattern": "M-*M"}, None),
        ("falcon_h1", {}, ["conv+matrix+attend"] * 2),
    ],
)  # fmt: skip
def test_what_mixes_the_tokens_of_each_layer(tmp_path, monkeypatch, model_type, changes, expected):
    from tests import tiny_checkpoints

    usual = tiny_checkpoints.USUAL[
        model_type
    ]  # the weights are of these layers, whatever the config leaves out
    shapes = tiny_checkpoints.SHAPES[model_type]
    monkeypatch.setitem(
        tiny_checkpoints.SHAPES,
        model_type,
        lambda c: shapes({**c, **{k: v for k, v in usual.items() if c[k] is None}}),
    )
    graph = graph_of(tmp_path, model_type, **changes)
    assert mixers(graph) == (expected or ["conv+matrix", "", "attend", "conv+matrix"])


REFUSED = [
    ("lfm2", {"layer_types": ["conv"]}, "layer_types = .*3 of them, one for each layer"),
    ("lfm2", {"layer_types": ["conv", "mamba", "conv"]}, "layers of type mamba"),
    ("lfm2", {"conv_L_cache": 1}, "conv_L_cache = 1"),
    ("lfm3", {"layer_types": ["conv", "conv"]}, "layer_types = .*3 of them"),
    ("qwen3_5_text", {"attn_output_gate": False}, "attn_output_gate = False.*without its gate is not known"),
    (
        "qwen3_5_text",
        {"linear_num_value_heads": 3},
        "linear_num_value_heads = 3.*multiple of the 2 key heads",
    ),
    ("qwen3_5_text", {"linear_value_head_dim": 16}, "in_proj_qkv.* implies"),
    (
        "granitemoehybrid",
        {**MAMBA, "mamba_d_head": 13},
        "mamba_n_heads = 8.*heads of 13 columns that make 96",
    ),
    ("granitemoehybrid", {**MAMBA, "mamba_n_groups": 3}, "mamba_n_groups = 3.*divisor of the 8 heads"),
    ("granitemoehybrid", {**MAMBA, "time_step_limit": [0.0, 0.1]}, "time_step_limit = .*and infinity"),
    ("granitemoehybrid", {**MAMBA, "time_step_limit": "none"}, "time_step_limit = .*and infinity"),
    ("falcon_h1", {"ssm_multipliers": [1.0, 2.0]}, "ssm_multipliers = .*5 numbers"),
    ("falcon_h1", {"key_multiplier": 0.0}, "key_multiplier = 0.0"),
    ("nemotron_h", {"layers_block_type": ["moe", "mlp", "full_attention", "mlp"]}, "layers of type moe"),
    ("nemotron_h", {"mamba_hidden_act": "gelu"}, "mamba_hidden_act 'gelu'"),
]


@pytest.mark.parametrize(("model_type", "changes", "message"), REFUSED)
def test_what_flatlm_does_not_have_is_refused_by_key_and_value(
    tmp_path, monkeypatch, model_type, changes, message
):
    from tests import tiny_checkpoints

    usual, shapes = tiny_checkpoints.USUAL[model_type], tiny_checkpoints.SHAPES[model_type]
    sizes = {**usual, **({"layer_types": MAMBA["layer_types"]} if model_type == "granitemoehybrid" else {})}
    monkeypatch.setitem(tiny_checkpoints.SHAPES, model_type, lambda c: shapes({**c, **sizes}))
    with pytest.raises(FlatlmError, match=message):
        graph_of(tmp_path, model_type, **changes)
