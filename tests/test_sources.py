"""Reading model folders, and what is said when they are damaged."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from flatlm.export.archs import build_graph
from flatlm.export.exporter import copy_files
from flatlm.export.sources import open_source
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.text.prompt import load_template
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.tiny_models import TinyShape, tiny_model, tiny_weights, write_safetensors


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float16", 11), ("bfloat16", 8)])
@pytest.mark.parametrize("shards", [1, 3])
def test_weights_are_read_as_float32_whatever_they_are_stored_as(tmp_path, dtype, bits, shards):
    source = open_source(str(tiny_model(tmp_path, dtype=dtype, shards=shards)))
    expected = tiny_weights(TinyShape())
    assert sorted(source.names()) == sorted(expected)
    for name, weight in expected.items():
        actual = source.read(name)
        assert actual.dtype == np.float32 and source.shape(name) == actual.shape == weight.shape
        assert (np.abs(actual - weight) <= np.abs(weight) * 2.0**-bits + 2.0**-25).all(), name


def test_bfloat16_special_values_survive(tmp_path):
    folder = tiny_model(tmp_path)
    values = np.array([0.0, -0.0, 1.0, -2.5, 2.0**127, 2.0**-130], np.float32)
    write_safetensors(folder / "model.safetensors", {"w": values}, "bfloat16")
    assert open_source(str(folder)).read("w").tobytes() == values.tobytes()


def test_read_weight_can_be_written_without_touching_the_file(tmp_path):
    source = open_source(str(tiny_model(tmp_path)))
    source.read("model.norm.weight")[:] = 7
    assert (source.read("model.norm.weight") != 7).all()


def test_folder_gives_the_tokenizer_files_and_the_template(tmp_path):
    files = open_source(str(tiny_model(tmp_path))).files
    assert files["tokenizer.json"] == tmp_path / "tokenizer.json"
    assert files["generation_config.json"] == tmp_path / "generation_config.json"
    assert b"<|im_start|>assistant" in files["chat_template.jinja"]


def test_missing_small_files_are_filled_from_the_config(tmp_path):
    folder = tiny_model(tmp_path)
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    files = open_source(str(folder)).files
    assert json.loads(files["generation_config.json"])["eos_token_id"] == 2
    assert "chat_template.jinja" not in files


def test_digest_is_stable_and_changes_with_the_weights(tmp_path):
    folder = tiny_model(tmp_path)
    first = open_source(str(folder)).digest
    assert open_source(str(folder)).digest == first
    tiny_model(tmp_path, seed=1)
    assert open_source(str(folder)).digest != first


def spoil_truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_empty(folder):
    (folder / "model.safetensors").write_bytes(b"abc")


def spoil_header(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"????"
    path.write_bytes(data)


def spoil_dtype(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))


def spoil_shape(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"[301, 60]", b"[303, 60]"))


def spoil_index(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"w": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def spoil_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"w": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def spoil_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoil_quantized(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq"}})
    )


DAMAGE = {
    "is truncated: model.norm.weight ends at byte": spoil_truncated,
    "is truncated or no safetensors file": spoil_empty,
    "the safetensors header is damaged": spoil_header,
    "is stored as I32; flatlm reads F32, F16, BF16": spoil_dtype,
    "has shape [303, 60] F32 but 72240 bytes": spoil_shape,
    "names '../other.safetensors', which is not a file of the folder": spoil_index,
    "1 of 1 shards are missing, first model-00002-of-00002.safetensors": spoil_shard,
    "holds weights as pickle (pytorch_model.bin)": spoil_pickle,
    "already quantized (quantization_config, method gptq)": spoil_quantized,
    "has neither model.safetensors nor": lambda folder: (folder / "model.safetensors").unlink(),
    "has no config.json": lambda folder: (folder / "config.json").unlink(),
    "config.json is not valid JSON": lambda folder: (folder / "config.json").write_text("{"),
    "config.json holds a JSON list": lambda folder: (folder / "config.json").write_text("[]"),
    "has no tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize(("message", "spoil"), DAMAGE.items(), ids=DAMAGE)
def test_damaged_folder_is_an_error_that_says_where(tmp_path, message, spoil):
    spoil(tiny_model(tmp_path))
    with pytest.raises(SourceError) as error:
        open_source(str(tmp_path))
    assert message in str(error.value) and str(tmp_path.name) in str(error.value)


def test_missing_weight_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"has no weight model\.nothing"):
        open_source(str(tiny_model(tmp_path))).read("model.nothing")


def test_unknown_source_suggests_the_name_that_was_meant():
    with pytest.raises(SourceError, match=r"did you mean smollm2-135m-instruct\?"):
        open_source("smollm2-135-instruct")


def test_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\x80\x04pickle")
    with pytest.raises(UnsupportedError, match=r"model\.bin is no GGUF file"):
        open_source(str(tmp_path / "model.bin"))


@pytest.mark.parametrize(("package", "src"), [("gguf", "tiny.gguf"), ("huggingface_hub", "owner/model")])
def test_missing_package_is_named_with_the_way_to_install_it(tmp_path, monkeypatch, package, src):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SourceError, match=rf"needs the package {package}: pip install 'flatlm\[export\]'"):
        open_source(src)


# ---- shards and their index


def sharded(folder):
    """A tiny model in two shards, the second with a stale copy of a weight of the first; its index."""
    tiny_model(folder)
    (folder / "model.safetensors").unlink()
    weights = tiny_weights(TinyShape())
    stale = {UP: np.full_like(weights[UP], 7), "model.norm.weight": weights.pop("model.norm.weight")}
    write_safetensors(folder / FIRST, weights)
    write_safetensors(folder / SECOND, stale)
    return dict.fromkeys(weights, FIRST) | {"model.norm.weight": SECOND}


def indexed(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return str(folder)


UP = "model.layers.0.mlp.up_proj.weight"
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


def test_the_index_says_which_shards_copy_counts(tmp_path):
    weight_map = sharded(tmp_path)
    source = open_source(indexed(tmp_path, weight_map))
    assert np.array_equal(source.read(UP), tiny_weights(TinyShape())[UP])
    assert (open_source(indexed(tmp_path, {**weight_map, UP: SECOND})).read(UP) == 7).all()


def test_a_weight_that_the_index_does_not_list_counts_if_one_shard_holds_it(tmp_path):
    weight_map = sharded(tmp_path)
    listed = {name: file for name, file in weight_map.items() if "layers.1" not in name}
    assert sorted(open_source(indexed(tmp_path, listed)).names()) == sorted(weight_map)
    del listed[UP]
    with pytest.raises(SourceError, match=rf"does not list {UP}, which both {FIRST} and {SECOND} hold"):
        open_source(indexed(tmp_path, listed))


def test_a_weight_that_its_shard_does_not_hold_is_named(tmp_path):
    weight_map = sharded(tmp_path) | {"model.norm.weight": FIRST}
    with pytest.raises(SourceError, match=rf"places model\.norm\.weight in {FIRST}, which does not hold it"):
        open_source(indexed(tmp_path, weight_map))


def test_a_single_file_comes_before_shards_as_in_transformers(tmp_path):
    weight_map = sharded(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", {UP: np.full((84, 60), 3, np.float32)})
    assert (open_source(indexed(tmp_path, weight_map)).read(UP) == 3).all()


# ---- headers


def rewritten(folder, change):
    """The model with `change(header)` in the place of its header."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    text = change(json.loads(raw[8 : 8 + length]))
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


ENTRIES = {
    "null": None,
    "number": 5,
    "text": "x",
    "list": [],
    "nothing": {},
    "no_shape": {"dtype": "F32", "data_offsets": [0, 4]},
    "dtype_number": {"dtype": 3, "shape": [1], "data_offsets": [0, 4]},
    "shape_text": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
    "shape_float": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
    "shape_truth": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
    "shape_huge": {"dtype": "F32", "shape": [10**400], "data_offsets": [0, 4]},
    "shape_negative": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
    "one_offset": {"dtype": "F32", "shape": [1], "data_offsets": [4]},
    "three_offsets": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]},
    "offset_text": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]},
    "offset_negative": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
    "turned": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_a_damaged_header_entry_is_named(tmp_path, entry):
    rewritten(tiny_model(tmp_path), lambda header: {**header, "model.norm.weight": entry})
    with pytest.raises(SourceError, match=r"model\.safetensors.*model\.norm\.weight"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("header", [b"5", b"[1]", b"null", b'"x"', b"[" * 10**5, b"{}}", b"\xff{}", b'{"a":'])
def test_a_header_that_is_no_object_is_damaged(tmp_path, header):
    rewritten(tiny_model(tmp_path), lambda _: header)
    with pytest.raises(SourceError, match=r"model\.safetensors: the safetensors header is damaged"):
        open_source(str(tmp_path))


def test_two_tensors_on_the_same_bytes_are_damage(tmp_path):
    norm, layer = "model.norm.weight", "model.layers.1.input_layernorm.weight"
    rewritten(tiny_model(tmp_path), lambda header: {**header, norm: header[layer]})
    with pytest.raises(SourceError, match=rf"{layer} and {norm} lie on the same bytes"):
        open_source(str(tmp_path))


def test_a_weight_that_nobody_reads_may_have_any_type(tmp_path):
    def change(header):
        header["model.layers.0.self_attn.rotary_emb.inv_freq"] = header.pop("model.norm.weight") | {
            "dtype": "F64"
        }
        return header

    rewritten(tiny_model(tmp_path), change)
    source = open_source(str(tmp_path))
    with pytest.raises(SourceError, match=r"has no weight model\.norm\.weight"):
        build_graph(source)


@pytest.mark.parametrize(
    ("dtype", "value"), [("float32", np.nan), ("float32", -np.inf), ("float16", np.inf), ("bfloat16", np.inf)]
)
@pytest.mark.parametrize(
    ("name", "at", "where"),
    [("model.embed_tokens.weight", (290, 7), "row 290, column 7"), ("model.norm.weight", (3,), "element 3")],
)
def test_a_weight_that_is_no_number_is_refused_by_name_and_row(tmp_path, dtype, value, name, at, where):
    weights = tiny_weights(TinyShape())
    weights[name][at] = value
    write_safetensors(tiny_model(tmp_path) / "model.safetensors", weights, dtype)
    with pytest.raises(SourceError, match=rf"model\.safetensors: {name} holds -?(nan|inf) in {where}"):
        open_source(str(tmp_path)).read(name)


# ---- small files


def edit(path, **changes):
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(
        json.dumps({key: value for key, value in {**values, **changes}.items() if value is not ...})
    )


def placed(folder):
    out = folder / "artifact"
    out.mkdir()
    copy_files(open_source(str(folder)), out)
    return out


@pytest.mark.parametrize(("generation", "expected"), [({}, [0, 2, 7]), ({"eos_token_id": 5}, [0, 2, 5, 7])])
def test_end_tokens_are_those_of_all_files_together(tmp_path, generation, expected):
    edit(tiny_model(tmp_path) / "config.json", eos_token_id=[2, 0, 7])
    (tmp_path / "generation_config.json").write_text(json.dumps(generation | {"top_k": 3}))
    out = placed(tmp_path)
    assert sorted(load_tokenizer(out).eos_ids) == expected
    assert json.loads((out / "generation_config.json").read_text())["top_k"] == 3


@pytest.mark.parametrize("number", ["2", [2, "x"], 2.0, True, {"a": 1}, 1 << 40])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_end_token_that_is_no_id_is_named(tmp_path, file, number):
    edit(tiny_model(tmp_path) / file, eos_token_id=number)
    with pytest.raises(SourceError, match=rf"{file} has eos_token_id"):
        open_source(str(tmp_path))


def test_named_templates_without_a_default_are_none_and_that_is_said(tmp_path):
    named = [{"name": "rag", "template": "R"}, {"name": "tool_use", "template": "T"}]
    edit(tiny_model(tmp_path) / "tokenizer_config.json", chat_template=named)
    source = open_source(str(tmp_path))
    (note,) = source.notes
    assert "rag, tool_use and none called default" in note and "chat_template.jinja" not in source.files
    assert load_template(placed(tmp_path)) is None
    edit(tmp_path / "tokenizer_config.json", chat_template=[*named, {"name": "default", "template": "D"}])
    source = open_source(str(tmp_path))
    assert source.files["chat_template.jinja"] == b"D" and not source.notes


@pytest.mark.parametrize(
    "template", [3, ["a"], [{"name": "x"}], [{"name": ["x"], "template": "T"}], "\ud800"]
)
def test_a_template_of_another_form_is_an_error_that_names_its_file(tmp_path, template):
    edit(tiny_model(tmp_path) / "tokenizer_config.json", chat_template=template)
    with pytest.raises(SourceError, match=r"tokenizer_config\.json"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("token", ["<|im_start|>", {"content": "<|im_start|>", "lstrip": False}])
def test_special_tokens_of_special_tokens_map_count(tmp_path, token):
    edit(tiny_model(tmp_path) / "tokenizer_config.json", bos_token=...)
    edit(tmp_path / "special_tokens_map.json", bos_token=token, additional_special_tokens=["x"])
    special = load_tokenizer(placed(tmp_path)).special
    assert special["bos_token"] == "<|im_start|>" and special["eos_token"] == "<|im_end|>"


def test_special_tokens_map_does_not_count_where_transformers_passes_it_over(tmp_path):
    edit(tiny_model(tmp_path) / "tokenizer_config.json", added_tokens_decoder={})
    edit(tmp_path / "special_tokens_map.json", bos_token="other")
    assert load_tokenizer(placed(tmp_path)).special["bos_token"] == "<|im_start|>"
