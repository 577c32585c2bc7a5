"""The artifact folder: manifest, opening, verifying, describing, and opening backends on it."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import closing

import numpy as np
import pytest

from flatlm.runtime.backends import open_backend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.backends.ort import OrtBackend
from flatlm.runtime.drafting.bigrams import load_bigrams
from flatlm.runtime.errors import BackendError, ContextError, FlatlmError, FormatError, IntegrityError
from flatlm.runtime.format.artifact import Manifest, open_artifact, verify_artifact, write_manifest
from flatlm.runtime.format.describe import describe
from flatlm.runtime.options import BackendOptions
from flatlm.runtime.text.prompt import load_template
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.tiny_graphs import CONTEXT, VOCABULARY, quantized_graph

pytest.importorskip("onnx")

from flatlm.export.onnx_writer import write_onnx

LAYER = {
    "name": "layers.0.attention.qkv",
    "bits": 4,
    "alpha": 0.5,
    "threshold": 3.25,
    "extra_columns": 0.081,
    "error": 0.0123,
    "kl": 0.0004,
    "surprise": 7,
}


@pytest.fixture
def folder(tmp_path):
    """A complete artifact."""
    write_onnx(quantized_graph(), tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    write_manifest(
        tmp_path,
        name="tiny",
        architecture="llama",
        recipe="edge",
        vocab_size=VOCABULARY,
        context_length=CONTEXT,
        parameters=12_345_678,
        bits_per_weight=4.25,
        layers=[LAYER, {"name": "head", "bits": 8}],
        totals={"extra_columns": 0.04},
    )
    return tmp_path


def edit_manifest(folder, **changes):
    file = folder / "flatlm.json"
    data = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


@pytest.mark.parametrize("name", ["flatlm.json", "model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(IntegrityError, match=f"{name}.*is no regular file"):
        open_artifact(folder)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("tokenizer.json", load_tokenizer),
        ("chat_template.jinja", load_template),
        ("tokenizer_config.json", load_template),
        ("bigrams.i32", lambda folder: load_bigrams(folder, VOCABULARY)),
    ],
)
def test_a_pipe_that_no_manifest_lists_is_not_waited_for_either(tmp_path, name, read):
    os.mkfifo(tmp_path / name)
    with pytest.raises(FlatlmError, match="is no regular file"):
        read(tmp_path)


@pytest.mark.parametrize("backend", ["native", "numpy", "ort"])
def test_an_artifact_of_links_opens_as_the_hub_lays_it_out(folder, tmp_path_factory, backend):
    if backend == "ort":
        pytest.importorskip("onnxruntime")
    cache = tmp_path_factory.mktemp("cache")
    linked = cache / "snapshots" / "a"
    linked.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for file in folder.iterdir():
        (cache / "blobs" / f"{file.name}-blob").write_bytes(file.read_bytes())
        (linked / file.name).symlink_to(f"../../blobs/{file.name}-blob")
    verify_artifact(linked)
    with closing(open_backend(backend, open_artifact(linked))) as model:
        found = model.forward(np.array([1, 2, 3]))
    with closing(open_backend(backend, open_artifact(folder))) as model:
        assert np.array_equal(found, model.forward(np.array([1, 2, 3])))


def test_a_manifest_survives_json():
    manifest = Manifest("tiny", "llama", "edge", 53, 24, 1000, 4.25, {}, ({"bits": 4},), {"a": 1}, {}, "1.2")
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_opening_gives_manifest_and_graph(folder):
    artifact = open_artifact(folder)
    assert artifact.manifest.name == "tiny"
    assert set(artifact.manifest.files) == {"model.onnx", "model.onnx.data", "tokenizer.json"}
    assert artifact.graph.outputs[0] == "logits"


def test_verify_hashes_every_byte_and_says_how_far_it_is(folder):
    seen = []
    verify_artifact(folder, lambda done, total: seen.append((done, total)))
    size = sum(f.stat().st_size for f in folder.iterdir() if f.name != "flatlm.json")
    assert seen[-1] == (size, size)


def test_a_changed_byte_is_found_by_verify_and_named(folder):
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[70] ^= 1
    (folder / "model.onnx.data").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"changed since export: model\.onnx\.data"):
        verify_artifact(folder)


def test_a_cut_file_is_found_when_opening(folder):
    data = (folder / "model.onnx.data").read_bytes()
    (folder / "model.onnx.data").write_bytes(data[:-1])
    with pytest.raises(IntegrityError, match=f"model.onnx.data has {len(data) - 1} bytes.*{len(data)}"):
        open_artifact(folder)


def test_a_missing_file_is_named(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(IntegrityError, match=r"tokenizer\.json is missing"):
        open_artifact(folder)


def test_a_folder_without_a_manifest_is_no_model(tmp_path):
    with pytest.raises(IntegrityError, match=r"no exported model at .*flatlm export"):
        open_artifact(tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": 2}, "format 2, this flatlm reads 1; install a newer"),
        ({"format": "x"}, "no format version"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"name": ...}, "missing or unknown.*name"),
        ({"more": 1}, "missing or unknown.*more"),
        ({"files": {"../x": {"sha256": "", "size": 1}}}, "leaves the folder"),
        ({"files": {"x": {"size": 1}}}, "needs sha256 and size"),
        ({"files": {}}, r"does not list model\.onnx"),
        ({"context_length": 99}, "context_length is 24 in model.onnx and 99"),
        ({"format": -7}, "format -7 is no version"),
        ({"layers": [True]}, "layers is a list of objects"),
        ({"files": {"a\0b": {"sha256": "", "size": 1}}}, "no name of a file"),
        ({"\x1b[2J": 1}, r"missing or unknown \('\\x1b"),
    ],
)
def test_a_manifest_that_cannot_be_meant_is_a_format_error(folder, changes, match):
    edit_manifest(folder, **changes)
    with pytest.raises(FormatError, match=match):
        open_artifact(folder)


def test_a_manifest_that_is_not_json_names_its_file(folder):
    (folder / "flatlm.json").write_text("{")
    with pytest.raises(FormatError, match=r"flatlm\.json: not JSON"):
        open_artifact(folder)


def test_a_manifest_nested_too_deeply_is_a_format_error(folder):
    (folder / "flatlm.json").write_text("[" * 100_000)
    with pytest.raises(FormatError, match=r"flatlm\.json: not JSON"):
        open_artifact(folder)


def test_a_path_with_a_nul_is_no_model():
    with pytest.raises(IntegrityError, match="no exported model at a"):
        open_artifact("a\0b")


def test_describe_writes_out_what_would_steer_a_terminal(folder):
    layer = {"name": "\x1b]0;title\x07", "bits": [1], "kl": 10**400, "\ue000": "\u202e"}
    edit_manifest(folder, name="a\x1b[2Jb\n", parameters=10**400, totals={"\x1b": "\r"}, layers=[layer])
    text = describe(open_artifact(folder))
    assert all(char.isprintable() for char in text.replace("\n", ""))
    assert r"a\x1b[2Jb\n" in text and r"\x1b]0;title\x07" in text and r"\ue000" in text


def test_describe_shows_sizes_and_a_row_for_each_layer(folder):
    text = describe(open_artifact(folder))
    (row,) = [line for line in text.splitlines() if line.startswith("layers.0.attention.qkv")]
    assert row.split() == [
        "layers.0.attention.qkv",
        "4",
        "0.50",
        "3.25",
        "8.10%",
        "1.23e-02",
        "4.00e-04",
        "7",
    ]
    assert "12.3 M" in text
    assert next(line for line in text.splitlines() if line.startswith("head")).split()[1:3] == ["8", "-"]
    assert all(line == line.rstrip() for line in text.splitlines())


def test_an_unknown_backend_is_answered_with_a_suggestion(folder):
    with pytest.raises(BackendError, match="did you mean numpy"):
        open_backend("nunpy", open_artifact(folder))


class TestOnnxruntime:
    @pytest.fixture
    def artifact(self, folder):
        pytest.importorskip("onnxruntime")
        return open_artifact(folder)

    def test_it_computes_what_the_reference_computes(self, artifact):
        backend, reference = open_backend("ort", artifact, BackendOptions(threads=1)), NumpyBackend(artifact)
        ids = np.arange(3, 15) * 7 % VOCABULARY
        prefill, expected = backend.forward(ids[:9], logits=4), reference.forward(ids[:9], logits=4)
        np.testing.assert_allclose(prefill, expected, atol=1e-4)
        for token in ids[9:]:
            np.testing.assert_allclose(
                backend.forward(token[None]), reference.forward(token[None]), atol=1e-4
            )
        assert (backend.position, backend.context, backend.vocab) == (12, CONTEXT, VOCABULARY)

    def test_truncating_forgets_what_came_after(self, artifact):
        backend = open_backend("ort", artifact, BackendOptions(threads=1))
        ids = np.arange(10)
        expected = backend.forward(ids)
        backend.truncate(4)
        backend.forward(np.array([50, 51]))
        backend.truncate(4)
        assert backend.position == 4
        np.testing.assert_allclose(backend.forward(ids[4:]), expected, atol=1e-5)
        backend.truncate(0)
        np.testing.assert_allclose(backend.forward(ids), expected, atol=1e-5)

    def test_a_long_prompt_goes_in_parts(self, artifact, monkeypatch):
        ids = np.arange(11)
        whole = open_backend("ort", artifact, BackendOptions(threads=1)).forward(ids, logits=6)
        monkeypatch.setattr("flatlm.runtime.backends.ort.CHUNK", 4)
        parts = open_backend("ort", artifact, BackendOptions(threads=1)).forward(ids, logits=6)
        assert parts.shape == (6, VOCABULARY)
        np.testing.assert_allclose(parts, whole, atol=1e-4)

    def test_a_prompt_longer_than_the_context_appends_nothing(self, artifact):
        backend = open_backend("ort", artifact, BackendOptions(threads=1, ctx=8))
        backend.forward(np.arange(5))
        with pytest.raises(ContextError, match=r"5 \+ 4 .*8"):
            backend.forward(np.arange(4))
        assert backend.position == 5

    def test_an_absent_device_is_a_backend_error_that_says_what_to_install(self, artifact):
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            with pytest.raises(BackendError, match="onnxruntime-gpu"):
                open_backend("ort", artifact, BackendOptions(device="cuda"))
        with pytest.raises(BackendError, match="no device 'tpu'"):
            OrtBackend(artifact, device="tpu")

    def test_both_products_of_flat_linear_give_the_same_logits(self, artifact, monkeypatch):
        import onnxruntime

        from flatlm.runtime.format.functions import SIGNED

        results = []
        for signed in (0, 1):
            options = onnxruntime.SessionOptions()
            value = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(signed, np.uint8))
            options.add_external_initializers([SIGNED], [value])
            session = onnxruntime.InferenceSession(str(artifact.path / "model.onnx"), options)
            feeds = {v.name: np.zeros((1, 2, 0, 4), np.float32) for v in session.get_inputs()[2:]}
            feeds["input_ids"] = feeds["position_ids"] = np.arange(9)[None]
            results.append(session.run(["logits"], feeds)[0])
        np.testing.assert_array_equal(*results)


def test_a_missing_optional_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="needs onnxruntime"):
        open_backend("ort", open_artifact(folder))


def test_manifest_is_immutable(folder):
    with pytest.raises(dataclasses.FrozenInstanceError):
        open_artifact(folder).manifest.name = "other"
