"""The float graphs: equal to transformers where it is installed, and errors that name what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flatlm.export import archs, execute
from flatlm.export.architecture import Architecture
from flatlm.export.archs import architectures, build_graph
from flatlm.export.blocks.builder import Builder
from flatlm.export.blocks.decoder import build
from flatlm.export.config import read_config
from flatlm.export.constants import LazyConstants
from flatlm.export.layers import Attention, Decoder, Gated, pre_norm
from flatlm.export.rope import rotary
from flatlm.export.sources import open_source
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.format.graph import Graph, Tensor
from flatlm.runtime.settings import Settings
from tests.tiny_models import TinyShape, tiny_model, tiny_weights, write_safetensors

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPES = {
    "llama_odd": {},
    "llama_untied": {"tied": False, "heads": 4, "kv_heads": 2, "hidden_size": 52, "head_size": 14},
    "llama_biases": {"attention_bias": True, "mlp_bias": True, "heads": 5, "kv_heads": 5, "head_size": 12},
    "llama_llama3_rope": {"rope_scaling": LLAMA3},
    "qwen2_odd": {"architecture": "qwen2", "vocab_size": 333},
    "qwen3": {"architecture": "qwen3", "heads": 6, "kv_heads": 2, "head_size": 14},
    "mistral": {"architecture": "mistral", "config": {"sliding_window": 7}},
    "mistral_without_a_window": {"architecture": "mistral", "config": {"sliding_window": None}},
    "llama_gelu": {"config": {"hidden_act": "gelu_pytorch_tanh"}},
    "qwen2_untied": {"architecture": "qwen2", "tied": False, "heads": 6, "kv_heads": 2, "head_size": 10},
}


def evaluate(graph: Graph, ids: np.ndarray) -> np.ndarray:
    """Plain numpy: ids [B, T] → logits [B, T, V], without a past."""
    values: dict[str, np.ndarray] = {"input_ids": ids, "position_ids": np.arange(ids.shape[1])[None]}
    for node in graph.nodes:
        x = [
            values[i] if i in values else graph.array(i) if i in graph.constants else None
            for i in node.inputs
        ]
        results = OPS[node.op](*x, **node.attrs)
        values.update(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=False))
    return values["logits"]


def norm(x, weight, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def gated(gate_up, act):
    gate, up = np.split(gate_up, 2, axis=-1)
    z = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
    active = {"silu": gate / (1 + np.exp(-gate)), "gelu_tanh": 0.5 * gate * (1 + np.tanh(z))}
    return active[act] * up


def heads(qkv, num_heads, kv_num_heads, head_size):
    apart = qkv.reshape(*qkv.shape[:2], -1, head_size).swapaxes(1, 2)
    return tuple(np.split(apart, [num_heads, num_heads + kv_num_heads], axis=1))


def rotate(x, cos, sin):
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(q, k, v, scale, state, window=1 << 20):
    assert state == "float32"
    batch, h, tokens, d = q.shape
    k, v = np.repeat(k, h // k.shape[1], axis=1), np.repeat(v, h // v.shape[1], axis=1)
    back = np.arange(tokens)[:, None] - np.arange(tokens)
    scores = q @ k.swapaxes(2, 3) * scale + np.where((back >= 0) & (back < window), 0, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    out = scores / scores.sum(-1, keepdims=True) @ v
    return out.swapaxes(1, 2).reshape(batch, tokens, h * d)


OPS = {
    "RotaryTable": lambda p, f: (np.cos(p[..., None] * f), np.sin(p[..., None] * f)),
    "Embedding": lambda ids, weight: weight[ids],
    "Norm": norm,
    "HeadNorm": norm,
    "Linear": lambda x, weight, bias: x @ weight.T + bias,
    "Heads": heads,
    "Rotate": rotate,
    "Append": lambda k, v, _past_key, _past_value, state: (k, v),
    "Attend": attend,
    "Gated": gated,
    "Add": np.add,
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float_graph_gives_the_logits_of_transformers(tmp_path, shape):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tiny_model(tmp_path / "model", **shape)
    ids = np.random.default_rng(1).integers(0, 301, (2, 40))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    actual = evaluate(build_graph(open_source(str(folder))), ids)
    assert np.abs(expected).max() > 1
    assert np.abs(expected - actual).max() < 1e-4 * np.abs(expected).max()


def test_nodes_have_the_names_and_the_order_of_the_contract(tmp_path):
    graph = build_graph(open_source(str(tiny_model(tmp_path, layers=1))))
    expected = ["rotary", "embedding"]
    expected += [
        f"layers.0.attention.{part}"
        for part in ["norm", "qkv", "heads", "rotate_q", "rotate_k", "append", "attend", "out", "add"]
    ]
    expected += [f"layers.0.mlp.{part}" for part in ("norm", "gate_up", "act", "down", "add")]
    assert [node.name for node in graph.nodes] == [*expected, "norm", "head"]
    assert graph.inputs == ["input_ids", "position_ids", "past_key_values.0.key", "past_key_values.0.value"]
    assert graph.outputs == ["logits", "present.0.key", "present.0.value"]


def test_layers_may_differ_from_one_another(tmp_path):
    narrow = TinyShape(layers=1, intermediate_size=40, mlp_bias=True)
    second = {name.replace("layers.0", "layers.1"): w for name, w in tiny_weights(narrow).items()}
    folder = tiny_model(tmp_path)
    write_safetensors(folder / "model.safetensors", second | tiny_weights(TinyShape(layers=1)))
    source = open_source(str(folder))
    attention = Attention(num_heads=3, kv_num_heads=1, head_size=20)
    layers = [pre_norm(attention, Gated("silu", 84)), pre_norm(attention, Gated("silu", 40, bias=True))]
    architecture = Architecture(lambda config, settings: Decoder(layers))
    config = read_config(source, source.config, architecture)
    graph = build(Builder(source, config, architecture.names), Decoder(layers))
    assert graph.constants["layers.1.mlp.gate_up.weight"].shape == (80, 60)
    assert np.array_equal(graph.array("layers.1.mlp.down.bias"), second["model.layers.1.mlp.down_proj.bias"])
    ids = np.random.default_rng(1).integers(0, 301, (2, 40))
    np.testing.assert_allclose(execute.logits(graph, ids), evaluate(graph, ids), rtol=1e-3, atol=1e-3)


def test_every_input_is_made_before_it_is_used(tmp_path):
    graph = build_graph(open_source(str(tiny_model(tmp_path, architecture="qwen2", tied=False))))
    known = {*graph.inputs, *graph.constants}
    for node in graph.nodes:
        assert known.issuperset(node.inputs), node.name
        known.update(node.outputs)
    assert known.issuperset(graph.outputs)
    assert set(graph.constants) <= {name for node in graph.nodes for name in node.inputs}


def test_metadata_tells_the_shape_of_the_model(tmp_path):
    graph = build_graph(open_source(str(tiny_model(tmp_path))))
    assert graph.metadata == {
        "context_length": "128",
        "vocab_size": "301",
        "hidden_size": "60",
        "layers": "2",
        "num_heads": "3",
        "kv_num_heads": "1",
        "head_size": "20",
        "architecture": "llama",
    }


def test_tied_head_uses_the_embedding_constant(tmp_path):
    graph = build_graph(open_source(str(tiny_model(tmp_path))))
    assert graph.nodes[-1].inputs[1] == "embedding.weight"
    assert "head.weight" not in graph.constants


def test_building_reads_no_weight_and_each_access_reads_one(tmp_path):
    class Counting:
        def __init__(self, source):
            self.source, self.reads = source, []

        def __getattr__(self, name):
            return getattr(self.source, name)

        def read(self, name):
            self.reads.append(name)
            return self.source.read(name)

    source = Counting(open_source(str(tiny_model(tmp_path))))
    graph = build_graph(source)
    assert source.reads == []
    assert graph.constants["layers.1.mlp.gate_up.weight"].shape == (168, 60)
    assert source.reads == [f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up")]


def test_lazy_constants_keep_what_a_pass_assigns_and_share_the_rest():
    constants = LazyConstants()
    constants.define("w", (2,), lambda: np.ones(2, np.float32))
    other = constants.copy()
    other["w"] = Tensor.of(np.zeros(3, np.int8))
    assert (constants["w"].data == 1).all() and constants.shape("w") == (2,)
    assert (other["w"].data == 0).all() and other.shape("w") == (3,)


def test_frequency_factors_divide_the_frequencies():
    rope = {"rope_theta": 100.0, "rope_type": "frequency_factors", "factors": [1.0, 4.0]}
    turned = rotary(Settings(rope, "rope", SourceError), 4, 128)
    assert turned.frequency.tolist() == pytest.approx([1.0, 0.025])


UNSUPPORTED = {
    "architecture 'lama4' is not supported; of the": {"model_type": "lama4"},
    "the nearest by name is 'llama'": {"model_type": "lama4"},
    "rope_scaling type 'xpos'": {"rope_scaling": {"type": "xpos", "factor": 4.0}},
    "rope_scaling type 'axial'": {"rope_parameters": {"rope_type": "axial", "factor": 2.0}},
    "hidden_act 'gelu' (flatlm has silu, swish, gelu_pytorch_tanh in": {"hidden_act": "gelu"},
    "hidden_act 'gelu_pytorch_tanh' (flatlm has silu, swish in": {
        "model_type": "qwen2",
        "hidden_act": "gelu_pytorch_tanh",
    },
    "partial_rotary_factor 0.5": {"partial_rotary_factor": 0.5},
    "sliding_window of 64 tokens": {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1},
    "mixture of experts (num_local_experts 8)": {"num_local_experts": 8},
    "model.layers.0.mlp.gate_proj.bias": {"mlp_bias": True},
    "model.layers.1.": {"num_hidden_layers": 1},
    "model.embed_tokens.weight is [301, 60], config.json implies [302, 60]": {"vocab_size": 302},
    "num_attention_heads = None": {"num_attention_heads": None},
    "3 attention heads, 2 key/value heads": {"num_key_value_heads": 2},
    "config.json has no model_type": {"model_type": None},
    "is_causal False": {"is_causal": False},
    "use_bidirectional_attention True": {"use_bidirectional_attention": True},
    "final_logit_softcapping 30.0": {"final_logit_softcapping": 30.0},
    "logit_scale 0.5": {"logit_scale": 0.5},
    "logits_scaling 8.0": {"logits_scaling": 8.0},
    "residual_multiplier 0.22": {"residual_multiplier": 0.22},
    "clip_qkv 8": {"clip_qkv": 8},
    "attention_chunk_size 64": {"attention_chunk_size": 64},
    "use_qk_norm True": {"use_qk_norm": True},
    "rope_interleaved True": {"rope_interleaved": True},
    "no_rope_layers [0, 1]": {"no_rope_layers": [0, 1]},
    "layers of type linear_attention": {"layer_types": ["full_attention", "linear_attention"]},
    "rope parameters of their own for full_attention": {
        "rope_parameters": {"full_attention": {"rope_type": "default"}}
    },
    "'xpos' (flatlm has default, linear, dynamic, llama3, yarn, longrope": {
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "rope_scaling": {"rope_type": "xpos", "factor": 4.0},
    },
    "has no rope_scaling.factor, expected a number": {"rope_scaling": {"type": "linear"}},
    "rope_scaling.short_factor = [1.0], expected 10 numbers": {
        "rope_scaling": {"type": "longrope", "short_factor": [1.0]}
    },
    "config.json has rms_norm_eps = nan, expected a number above 0": {"rms_norm_eps": float("nan")},
    "config.json has rms_norm_eps = 0, expected a number above 0": {"rms_norm_eps": 0},
    "config.json has rope_theta = inf": {"rope_theta": float("inf")},
    "config.json has hidden_size = '60', expected an integer": {"hidden_size": "60"},
    "config.json has head_dim = 20.0, expected an integer": {"head_dim": 20.0},
    "config.json has max_position_embeddings = True": {"max_position_embeddings": True},
    "config.json has rope_scaling = 'llama3', expected an object": {"rope_scaling": "llama3"},
    "config.json has no rope_scaling.low_freq_factor, expected a number": {
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0}
    },
    "config.json has rope_scaling.high_freq_factor = 1.0, expected a number above 1": {
        "rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}
    },
    "config.json has tie_word_embeddings = 'no', expected true or false": {"tie_word_embeddings": "no"},
    "config.json has attention_bias = 1, expected true or false": {"attention_bias": 1},
}


@pytest.mark.parametrize(
    ("message", "change"), UNSUPPORTED.items(), ids=[next(iter(c)) for c in UNSUPPORTED.values()]
)
def test_error_names_what_the_config_asks_for(tmp_path, message, change):
    folder = tiny_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(SourceError) as error:
        build_graph(open_source(str(folder)))
    assert message in str(error.value)


def test_all_unsupported_features_are_named_at_once(tmp_path):
    folder = tiny_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu", "num_experts": 4}))
    with pytest.raises(UnsupportedError, match=r"hidden_act 'relu'.*num_experts 4"):
        build_graph(open_source(str(folder)))


@pytest.mark.parametrize(
    "change",
    [
        {"is_causal": True, "rope_interleaved": False, "use_mrope": False, "logit_scale": 1.0},
        {"residual_multiplier": 1, "clip_qkv": None, "final_logit_softcapping": None, "use_qk_norm": False},
        {"_name_or_path": "x", "transformers.js_config": {"kv": [1]}, "pretraining_tp": 1, "use_cache": True},
        {"attention_dropout": 0.1, "initializer_range": 0.02, "router_aux_loss_coef": 0.001},
        {"rope_scaling": {"type": "linear", "factor": 1.0}, "partial_rotary_factor": 1.0},
        {"properties": ["a"], "loss_scale": 128, "num_experts_per_tok": 2, "chunk_size_feed_forward": 0},
    ],
)
def test_keys_that_change_nothing_are_no_obstacle(tmp_path, change):
    folder = tiny_model(tmp_path)
    expected = build_graph(open_source(str(folder)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert build_graph(open_source(str(folder))).nodes == expected.nodes


def test_rope_scaling_comes_before_rope_parameters_as_in_transformers(tmp_path):
    expected = build_graph(open_source(str(tiny_model(tmp_path / "a", rope_scaling=LLAMA3))))
    folder = tiny_model(tmp_path / "b", rope_scaling=LLAMA3)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}
    (folder / "config.json").write_text(json.dumps(config))
    actual = build_graph(open_source(str(folder)))
    name = "rotary.inverse_frequency"
    assert np.array_equal(actual.array(name), expected.array(name))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_stored_head_that_is_not_the_embedding_is_the_head_whatever_the_config_says(tmp_path, dtype):
    folder = tiny_model(tmp_path, tied=False, dtype=dtype)
    expected = build_graph(open_source(str(folder)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    actual = build_graph(open_source(str(folder)))
    assert actual.nodes == expected.nodes
    assert np.array_equal(actual.array("head.weight"), expected.array("head.weight"))


def test_a_stored_head_that_is_the_embedding_is_tied(tmp_path):
    weights = tiny_weights(TinyShape())
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    write_safetensors(tiny_model(tmp_path) / "model.safetensors", weights)
    assert build_graph(open_source(str(tmp_path))).nodes[-1].inputs[1] == "embedding.weight"
    weights["lm_head.weight"][300, 59] += 1
    write_safetensors(tmp_path / "model.safetensors", weights)
    assert build_graph(open_source(str(tmp_path))).nodes[-1].inputs[1] == "head.weight"


def test_unused_sliding_window_is_no_obstacle(tmp_path):
    folder = tiny_model(tmp_path, architecture="qwen2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"sliding_window": 64, "use_sliding_window": False})
    )
    assert build_graph(open_source(str(folder))).metadata["architecture"] == "qwen2"


def test_architectures_are_the_files_of_the_folder():
    files = {path.stem for path in Path(archs.__file__).parent.glob("[a-z]*.py")}
    assert architectures() == sorted(files) and {"llama", "mistral", "qwen2", "qwen3"} <= files
