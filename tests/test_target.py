"""What an export may replace: an artifact of ours, and nothing else, by whatever name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flatlm.export.target import check
from flatlm.runtime.errors import UsageError

MANIFEST = {
    "name": "tiny",
    "architecture": "llama",
    "recipe": "edge",
    "vocab_size": 10,
    "context_length": 20,
    "parameters": 30,
    "bits_per_weight": 4.5,
    "files": {name: {"sha256": "0", "size": 1} for name in ("model.onnx", "tokenizer.json")},
    "format": 1,
}


def artifact(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "flatlm.json").write_text(json.dumps(MANIFEST))
    (folder / "model.onnx").write_text("x")
    return folder


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "checkpoints" / "source"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    return folder


def test_a_new_folder_and_with_force_an_artifact(tmp_path, source):
    assert check(tmp_path / "new", False, source) == tmp_path / "new"
    old = artifact(tmp_path / "old")
    assert check(old, True, source) == old
    with pytest.raises(UsageError, match="exists already: choose another folder, or replace it with --force"):
        check(old, False, source)


SPOILED = {
    "another file": (lambda out: (out / "thesis.txt").write_text("x"), "holds thesis.txt"),
    "a folder": (lambda out: (out / "more").mkdir(), "holds more"),
    "a folder with a listed name": (lambda out: (out / "tokenizer.json").mkdir(), "is no plain file"),
    "a link with a listed name": (lambda out: (out / "tokenizer.json").symlink_to("/"), "is no plain file"),
    "no manifest": (lambda out: (out / "flatlm.json").unlink(), "has no flatlm.json"),
    "a foreign manifest": (lambda out: (out / "flatlm.json").write_text("{}"), "not a flatlm manifest"),
    "a damaged manifest": (lambda out: (out / "flatlm.json").write_text("{"), "not JSON"),
    "a manifest that is a pipe": (
        lambda out: ((out / "flatlm.json").unlink(), os.mkfifo(out / "flatlm.json")),
        "is no regular file",
    ),
}


@pytest.mark.parametrize(("spoil", "what"), SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("force", [True, False])
def test_a_folder_with_anything_else_is_kept(tmp_path, spoil, what, force):
    out = artifact(tmp_path / "out")
    spoil(out)
    with pytest.raises(UsageError, match=what) as refused:
        check(out, force)
    assert "give a folder that does not exist yet" in str(refused.value)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, os.mkfifo], ids=["empty folder", "file", "pipe"])
def test_what_is_no_artifact_at_all_is_kept(tmp_path, make):
    make(tmp_path / "out")
    with pytest.raises(UsageError, match="exists already and is"):
        check(tmp_path / "out", True)


def test_a_link_is_refused_whatever_it_leads_to(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(artifact(tmp_path / "old"))
    with pytest.raises(UsageError, match=f"link is a link, to {tmp_path / 'old'}"):
        check(link, True)
    link.unlink()
    link.symlink_to("nowhere")
    with pytest.raises(UsageError, match="is a link, to nowhere"):
        check(link, False)


def test_the_source_what_holds_it_and_what_is_in_it_are_refused(tmp_path, source):
    for out in (source, source.parent, tmp_path, source / "edge", source / "a" / ".." / "edge"):
        for force in (True, False):
            with pytest.raises(UsageError, match="is, holds or lies in the source"):
                check(out, force, source)


def test_a_source_inside_an_artifact_is_seen_through_links(tmp_path):
    out = artifact(tmp_path / "out")
    (tmp_path / "beside").symlink_to(out)
    with pytest.raises(UsageError, match="is, holds or lies in the source"):
        check(out, True, tmp_path / "beside" / "model.onnx")


def test_the_working_folder_and_those_above_are_refused(tmp_path, monkeypatch):
    out = artifact(tmp_path / "out")
    (out / "tokenizer.json").write_text("x")
    monkeypatch.chdir(out)
    for name in (".", "..", "../out", "/"):
        with pytest.raises(UsageError, match="is the working folder, or holds it"):
            check(Path(name), True)
