"""GGUF files: the same names, weights and tokens as the folder they were made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from flatlm.export.archs import build_graph
from flatlm.export.sources import open_source
from flatlm.export.sources.gguf_tensors import unpermute
from flatlm.runtime.errors import SourceError, UnsupportedError
from tests.tiny_models import TinyShape, tiny_config, tiny_model, tiny_weights

GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def permute(rows, heads):
    """Two halves to rotary pairs side by side: how llama GGUF files store q and k."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def gguf_name(name):
    for hf, short in GGUF_NAMES.items():
        name = name.replace(hf, short)
    return name


def tiny_gguf(path, folder, shape, weights=None, **changes):
    """The tiny model of `folder` as a GGUF file, float32; `changes` replace metadata and how it is stored."""
    gguf = pytest.importorskip("gguf")
    s, config = shape, tiny_config(shape)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    vocab += [f"[PAD{i}]" for i in range(len(vocab), s.vocab_size)]
    order = gguf.GGUFEndian.BIG if changes.get("big_endian") else gguf.GGUFEndian.LITTLE
    split = changes.get("split", 0)  # tensors of a part
    architecture = changes.get("architecture", s.architecture)
    writer = gguf.GGUFWriter(str(path), architecture, endianess=order, split_max_tensors=split)
    writer.add_block_count(s.layers)
    writer.add_context_length(s.context_length)
    writer.add_embedding_length(s.hidden_size)
    writer.add_feed_forward_length(s.intermediate_size)
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.kv_heads)
    writer.add_key_length(s.head_size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(s.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(vocab)
    writer.add_token_types([3] * 3 + [5 if token.startswith("[PAD") else 1 for token in vocab[3:]])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(changes.get("add_bos", False))
    writer.add_chat_template("{{ messages }}")
    for key, (value, kind) in changes.get("metadata", {}).items():
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, gguf.GGUFValueType[kind])
    for name, weight in (weights or tiny_weights(s)).items():
        heads = {"q_proj": s.heads, "k_proj": s.kv_heads}.get(name.split(".")[-2], 0)
        stored = permute(weight, heads).copy() if heads and s.architecture == "llama" else weight.copy()
        kind = changes.get("stored", {}).get(name)
        if kind:
            kind = gguf.GGMLQuantizationType[kind]
            stored = gguf.quants.quantize(stored, kind)
        writer.add_tensor(gguf_name(name), stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    "shape",
    [
        TinyShape(),
        TinyShape(attention_bias=True, tied=False),
        TinyShape(architecture="qwen2", vocab_size=320),
    ],
    ids=["llama", "llama_biases_untied", "qwen2"],
)
def test_gguf_gives_the_names_weights_and_config_of_the_folder(tmp_path, shape):
    folder = tiny_model(tmp_path / "hf", **vars(shape))
    source = open_source(str(tiny_gguf(tmp_path / "tiny.gguf", folder, shape)))
    expected = tiny_weights(shape)
    assert sorted(source.names()) == sorted(expected)
    for name, weight in expected.items():
        assert source.shape(name) == weight.shape
        assert np.array_equal(source.read(name), weight), name
    same = {
        key: tiny_config(shape).get(key) for key in ("rms_norm_eps", "head_dim", "vocab_size", "rope_theta")
    }
    assert {key: source.config[key] for key in same} == same
    assert source.config["tie_word_embeddings"] == shape.tied


@pytest.mark.skipif(sys.platform != "linux", reason="memory by mapping is told by Linux")
def test_what_was_read_of_the_mapped_file_does_not_stay_in_memory(tmp_path):
    def resident():
        mappings = Path("/proc/self/smaps").read_text().split(f"{path}\n")[1:]
        return sum(int(mapping.split("Rss:")[1].split()[0]) for mapping in mappings)

    shape = TinyShape()
    path = tiny_gguf(tmp_path / "tiny.gguf", tiny_model(tmp_path / "model", **vars(shape)), shape)
    source = open_source(str(path))
    once = {name: source.read(name) for name in source.names()}
    assert resident() == 0
    assert all(np.array_equal(source.read(name), values) for name, values in once.items())


def doubled(head_noise):
    """A model whose head is its embedding with a share of noise, of sizes that can be quantized."""
    shape = TinyShape(hidden_size=64, intermediate_size=96, head_size=16, heads=4, kv_heads=2, tied=False)
    weights = tiny_weights(shape)
    embedding = weights["model.embed_tokens.weight"]
    noise = np.random.default_rng(5).standard_normal(embedding.shape).astype(np.float32)
    weights["lm_head.weight"] = embedding + np.float32(head_noise) * embedding.std() * noise
    return shape, weights


@pytest.mark.parametrize(
    ("embedding", "head"),
    [("F32", "F32"), ("Q4_0", "F32"), ("Q8_0", "Q8_0"), ("Q4_1", "Q5_0"), ("Q4_0", "F16")],
)
def test_gguf_that_holds_a_tied_matrix_twice_is_tied_and_the_heads_copy_stands(tmp_path, embedding, head):
    gguf = pytest.importorskip("gguf")
    shape, weights = doubled(0)
    stored = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    folder = tiny_model(tmp_path / "hf")
    source = open_source(str(tiny_gguf(tmp_path / "tiny.gguf", folder, shape, weights, stored=stored)))
    assert source.config["tie_word_embeddings"] and "lm_head.weight" not in source.names()
    kind = gguf.GGMLQuantizationType[head]
    expected = gguf.quants.dequantize(gguf.quants.quantize(weights["lm_head.weight"], kind), kind)
    assert np.array_equal(source.read("model.embed_tokens.weight"), expected)


@pytest.mark.parametrize(
    ("noise", "kind"),
    [(1e-6, "F32"), (0.02, "F32"), (0.02, "F16"), (0.02, "BF16"), (0.1, "Q8_0"), (0.6, "Q4_0")],
)
def test_gguf_head_that_differs_by_more_than_its_type_rounds_is_a_head_of_its_own(tmp_path, noise, kind):
    shape, weights = doubled(noise)
    stored = {"model.embed_tokens.weight": kind, "lm_head.weight": kind}
    folder = tiny_model(tmp_path / "hf")
    source = open_source(str(tiny_gguf(tmp_path / "tiny.gguf", folder, shape, weights, stored=stored)))
    assert not source.config["tie_word_embeddings"]
    embedding, head = source.read("model.embed_tokens.weight"), source.read("lm_head.weight")
    assert not np.array_equal(embedding, head)
    if kind == "F32":
        assert np.array_equal(head, weights["lm_head.weight"])
        assert np.array_equal(embedding, weights["model.embed_tokens.weight"])


def test_one_row_of_the_head_that_was_trained_further_is_seen(tmp_path):
    shape, weights = doubled(0)
    weights["lm_head.weight"][290] *= -1
    stored = {"model.embed_tokens.weight": "Q4_0", "lm_head.weight": "Q8_0"}
    folder = tiny_model(tmp_path / "hf")
    source = open_source(str(tiny_gguf(tmp_path / "tiny.gguf", folder, shape, weights, stored=stored)))
    assert "lm_head.weight" in source.names()


def test_rebuilt_tokenizer_encodes_as_the_merges_say(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    folder = tiny_model(tmp_path / "hf", vocab_size=400)
    source = open_source(str(tiny_gguf(tmp_path / "tiny.gguf", folder, TinyShape(vocab_size=400))))
    rebuilt = tokenizers.Tokenizer.from_buffer(source.files["tokenizer.json"])
    expected = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "<|im_start|>user\nThe capital of Italy; naïve 日本語 🙂<|im_end|>\n"
    assert rebuilt.encode(text).ids == expected.encode(text).ids
    assert rebuilt.decode(rebuilt.encode(text).ids, skip_special_tokens=False) == text
    assert len(rebuilt.encode("1234").ids) == 4  # smollm cuts digits apart, whatever the merges say
    assert json.loads(source.files["generation_config.json"])["eos_token_id"] == [2, 0]
    assert json.loads(source.files["tokenizer_config.json"])["eos_token"] == "<|im_end|>"


def test_begin_token_is_added_where_the_gguf_asks_for_it(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    folder = tiny_model(tmp_path / "hf")
    source = open_source(str(tiny_gguf(tmp_path / "tiny.gguf", folder, TinyShape(), add_bos=True)))
    assert tokenizers.Tokenizer.from_buffer(source.files["tokenizer.json"]).encode("a").ids[0] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "qwen9"}, "architecture 'qwen9' is not supported; .* nearest by name is 'qwen"),
        ({"pre": "kimi-k2"}, "tokenizer 'gpt2' with pre-tokenizer 'kimi-k2' cannot be rebuilt"),
    ],
)
def test_unknown_gguf_is_refused_by_name(tmp_path, change, message):
    folder = tiny_model(tmp_path / "hf")
    with pytest.raises(UnsupportedError, match=message):
        open_source(str(tiny_gguf(tmp_path / "tiny.gguf", folder, TinyShape(), **change)))


@pytest.mark.parametrize("keep", [100, 5000, -1000])
def test_truncated_gguf_is_an_error(tmp_path, keep):
    path = tiny_gguf(tmp_path / "tiny.gguf", tiny_model(tmp_path / "hf"), TinyShape())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SourceError, match=r"tiny\.gguf is truncated or damaged"):
        open_source(str(path))


def test_unpermute_is_the_inverse_of_the_gguf_layout():
    rows = np.arange(48.0).reshape(24, 2)
    assert np.array_equal(unpermute(permute(rows, 3), 3), rows)


def opened(tmp_path, **changes):
    shape = TinyShape()
    return open_source(str(tiny_gguf(tmp_path / "tiny.gguf", tiny_model(tmp_path / "hf"), shape, **changes)))


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("attention.causal", False, "BOOL"),
        ("rope.scaling.type", "xpos", "STRING"),
        ("rope.scaling.yarn_ext_factor", 0.5, "FLOAT32"),
        ("rope.dimension_count", 10, "UINT32"),
        ("attention.clamp_kqv", 8.0, "FLOAT32"),
        ("logit_scale", 0.5, "FLOAT32"),
        ("embedding_scale", 12.0, "FLOAT32"),
        ("residual_scale", 0.2, "FLOAT32"),
        ("attention.scale", 0.5, "FLOAT32"),
        ("attention.max_alibi_bias", 8.0, "FLOAT32"),
        ("attention.value_length", 40, "UINT32"),
        ("final_logit_softcapping", 30.0, "FLOAT32"),
        ("use_parallel_residual", True, "BOOL"),
        ("attention.head_count_kv", [1, 3], "ARRAY"),
    ],
)
def test_gguf_key_that_changes_the_mathematics_is_refused_by_name(tmp_path, key, value, kind):
    with pytest.raises(UnsupportedError) as error:
        opened(tmp_path, metadata={f"llama.{key}": (value, kind)})
    others = {"attention.value_length": "values of another size (40)"}
    others |= {
        "rope.scaling.type": "rope scaling 'xpos'",
        "rope.dimension_count": "partial_rotary_factor 0.5",
    }
    assert others.get(key, key) in str(error.value)


@pytest.mark.parametrize(
    "metadata",
    [
        {"rope.scaling.type": ("linear", "STRING"), "rope.scaling.factor": (0.0, "FLOAT32")},
        {"rope.scaling.type": ("linear", "STRING"), "rope.scaling.factor": (1.0, "FLOAT32")},
        {"rope.scaling.type": ("none", "STRING"), "rope.scaling.factor": (4.0, "FLOAT32")},
        {"attention.causal": (True, "BOOL"), "logit_scale": (1.0, "FLOAT32")},
        {"attention.scale": (20**-0.5, "FLOAT32"), "attention.clamp_kqv": (0.0, "FLOAT32")},
        {"attention.head_count_kv": ([1, 1], "ARRAY"), "feed_forward_length": ([84, 84], "ARRAY")},
        {"vocab_size": (301, "UINT32"), "tensor_data_layout": ("Meta AI original pth", "STRING")},
    ],
)
def test_gguf_keys_that_change_nothing_are_no_obstacle(tmp_path, metadata):
    source = opened(tmp_path, metadata={f"llama.{key}": value for key, value in metadata.items()})
    expected = build_graph(open_source(str(tmp_path / "hf")))
    graph = build_graph(source)
    assert graph.metadata == expected.metadata and graph.nodes == expected.nodes


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"scale_linear": (4.0, "FLOAT32")}, {"rope_type": "linear", "factor": 4.0}),
        ({"scaling.factor": (4.0, "FLOAT32")}, {"rope_type": "linear", "factor": 4.0}),
        (
            {
                "scaling.type": ("yarn", "STRING"),
                "scaling.factor": (4.0, "FLOAT32"),
                "scaling.original_context_length": (32, "UINT32"),
                "scaling.yarn_beta_fast": (16.0, "FLOAT32"),
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 16.0,
            },
        ),
    ],
)
def test_ropes_of_a_gguf_are_those_of_a_config(tmp_path, metadata, expected):
    source = opened(tmp_path, metadata={f"llama.rope.{key}": value for key, value in metadata.items()})
    found = {key: value for key, value in source.config["rope_parameters"].items() if value is not None}
    assert found == {"rope_theta": 10000.0, "partial_rotary_factor": 1.0, **expected}


@pytest.mark.parametrize("number", [301, 999, 4294967295])
def test_gguf_token_id_out_of_range_is_none(tmp_path, number):
    keys = ("bos", "eos", "padding", "eot")
    source = opened(tmp_path, metadata={f"tokenizer.ggml.{key}_token_id": (number, "UINT32") for key in keys})
    config = json.loads(source.files["tokenizer_config.json"])
    generation = json.loads(source.files["generation_config.json"])
    assert [config[f"{name}_token"] for name in ("bos", "eos", "pad")] == [None] * 3
    assert generation == {"bos_token_id": None, "eos_token_id": [0, 2], "pad_token_id": None}


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("tokenizer.chat_template", ["a", "b"], "ARRAY"),
        ("tokenizer.ggml.eos_token_id", "2", "STRING"),
        ("tokenizer.ggml.token_type", ["1", "2"], "ARRAY"),
        ("tokenizer.ggml.token_type", [1, 2], "ARRAY"),
        ("tokenizer.ggml.tokens", [1, 2], "ARRAY"),
        ("tokenizer.ggml.merges", 5, "UINT32"),
        ("llama.embedding_length", "60", "STRING"),
        ("llama.block_count", 0, "UINT32"),
        ("llama.context_length", [1, 2], "ARRAY"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "FLOAT32"),
        ("llama.attention.layer_norm_rms_epsilon", 0.0, "FLOAT32"),
        ("llama.rope.freq_base", float("inf"), "FLOAT32"),
        ("general.architecture", 3, "UINT32"),
    ],
)
def test_gguf_value_of_a_wrong_type_is_an_error_that_names_file_and_key(tmp_path, key, value, kind):
    with pytest.raises(SourceError) as error:
        opened(tmp_path, metadata={key: (value, kind)})
    assert key in str(error.value) and "tiny.gguf" in str(error.value)


def test_gguf_text_that_is_no_utf8_is_an_error_that_names_its_key(tmp_path):
    path = tiny_gguf(tmp_path / "tiny.gguf", tiny_model(tmp_path / "hf"), TinyShape())
    raw = bytearray(path.read_bytes())
    raw[raw.find(b"The")] = 0xFF
    path.write_bytes(raw)
    with pytest.raises(SourceError, match=r"tiny\.gguf: tokenizer\.ggml\.(tokens|merges) holds bytes"):
        open_source(str(path))


def test_named_templates_of_a_gguf_without_a_default_are_none_and_that_is_said(tmp_path):
    path, template = tmp_path / "tiny.gguf", "tokenizer.chat_template"
    changes = {f"{template}s": (["rag"], "ARRAY"), f"{template}.rag": ("R", "STRING")}
    tiny_gguf(path, tiny_model(tmp_path / "hf"), TinyShape(), metadata=changes)
    source = open_source(str(path))
    assert source.files["chat_template.jinja"] == b"{{ messages }}" and not source.notes
    path.write_bytes(path.read_bytes().replace(template.encode() + b"\x08", b"tokenizer.chat_templatE\x08"))
    source = open_source(str(path))
    assert "chat_template.jinja" not in source.files
    assert source.notes[0].startswith("tiny.gguf has chat templates called rag and none called default")


@pytest.mark.parametrize(("kind", "value"), [("F32", np.nan), ("F16", np.inf), ("Q8_0", np.nan)])
def test_gguf_weight_that_is_no_number_is_refused_by_name_and_row(tmp_path, kind, value):
    shape, weights = doubled(1)
    weights["lm_head.weight"][290, 7] = value
    stored = {"lm_head.weight": kind}
    with np.errstate(invalid="ignore"):
        path = tiny_gguf(tmp_path / "tiny.gguf", tiny_model(tmp_path / "hf"), shape, weights, stored=stored)
    with pytest.raises(SourceError, match=r"tiny\.gguf: lm_head\.weight holds (nan|inf) in row 290"):
        open_source(str(path)).read("lm_head.weight")
