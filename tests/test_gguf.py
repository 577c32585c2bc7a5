"""GGUF files: the same names, weights and tokens as the folder they were made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from flatlm.export.sources import open_source
from flatlm.export.sources.gguf_file import unpermute
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
    """The tiny model of `folder` as a GGUF file, float32; `changes` replace metadata."""
    gguf = pytest.importorskip("gguf")
    s, config = shape, tiny_config(shape)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    vocab += [f"[PAD{i}]" for i in range(len(vocab), s.vocab_size)]
    writer = gguf.GGUFWriter(str(path), changes.get("architecture", s.architecture))
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
    for name, weight in (weights or tiny_weights(s)).items():
        heads = {"q_proj": s.heads, "k_proj": s.kv_heads}.get(name.split(".")[-2], 0)
        stored = permute(weight, heads) if heads and s.architecture == "llama" else weight
        writer.add_tensor(gguf_name(name), stored)
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


def test_gguf_that_holds_a_tied_matrix_twice_is_tied_and_the_heads_copy_stands(tmp_path):
    shape = TinyShape()
    weights = tiny_weights(shape)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = weights["lm_head.weight"] * np.float32(1.05)
    folder = tiny_model(tmp_path / "hf")
    source = open_source(str(tiny_gguf(tmp_path / "tiny.gguf", folder, shape, weights)))
    assert source.config["tie_word_embeddings"] and "lm_head.weight" not in source.names()
    assert np.array_equal(source.read("model.embed_tokens.weight"), weights["lm_head.weight"])


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
        ({"architecture": "phi3"}, "architecture 'phi3' is not supported; flatlm reads llama, qwen2"),
        ({"pre": "tekken"}, "tokenizer 'gpt2' with pre-tokenizer 'tekken' cannot be rebuilt"),
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
