"""Reading model folders, and what is said when they are damaged."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from flatlm.export.sources import open_source
from flatlm.runtime.errors import SourceError, UnsupportedError
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
    values = np.array([0.0, -0.0, 1.0, -2.5, np.inf, 2.0**-130], np.float32)
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
    index = {"weight_map": {"w": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def spoil_shard(folder):
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
