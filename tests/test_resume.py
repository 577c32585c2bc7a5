"""A killed export goes on where it was, and makes the bytes it would have made."""

from __future__ import annotations

import dataclasses
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flatlm.export import journal
from flatlm.export.journal import Journal, key
from flatlm.export.passes.bits import Variant
from flatlm.export.recipe import RECIPES
from tests.test_exporter import TINY, export
from tests.tiny_models import tiny_model

# Kills itself in the middle of the given write of the journal.
CHILD = """
import os, signal, sys
from pathlib import Path
from flatlm.export import journal
from tests.test_exporter import export

source, out, name, last = sys.argv[1:]
left, write = [int(last)], Path.write_bytes

def half(path, content):
    left[0] -= ".export" in str(path) and path.suffix == ".part"
    if left[0] == 0:
        write(path, bytes(content)[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, content)

Path.write_bytes = half
export(Path(source), Path(out), name)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("source") / "tiny", architecture="qwen2", seed=3)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("name", "every"), [("edge", 5), ("w8a8", 4)])
def test_killed_again_and_again_it_makes_the_same_artifact(source, tmp_path, name, every):
    whole = export(source, tmp_path / "whole" / "model", name).path
    out, killed = tmp_path / "killed" / "model", 0
    while True:
        done = subprocess.run([sys.executable, "-c", CHILD, source, out, name, str(every)], check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        assert not out.exists()
        killed += 1
    assert killed > 1
    assert files(out) == files(whole)
    assert [entry.name for entry in out.parent.iterdir()] == ["model"]


def test_a_journal_gives_back_what_was_saved_and_nothing_that_is_damaged(tmp_path):
    journal = Journal.open(tmp_path / "journal", "k", pytest.fail)
    array = np.arange(6.0).reshape(2, 3)
    state = (3, {"a": [Variant(4, 2.5, 0.1, 1e-300)], 4: None}, {"x": array}, np.float32(0.1))
    journal.save("state", state)
    loaded = Journal.open(tmp_path / "journal", "k", pytest.fail).load("state")
    assert loaded[:2] == state[:2]
    assert np.array_equal(loaded[2]["x"], state[2]["x"])
    assert (loaded[3], type(loaded[3])) == (state[3], np.float32)
    stored = tmp_path / "journal" / "state.npz"
    stored.write_bytes(stored.read_bytes()[:-40])
    assert journal.load("state") is None
    assert journal.load("another") is None


def test_a_journal_of_another_key_is_thrown_away_and_told_so(tmp_path):
    Journal.open(tmp_path / "journal", "old", pytest.fail).save("state", 1)
    told = []
    assert Journal.open(tmp_path / "journal", "new", told.append).load("state") is None
    assert "another export" in told[0]


@pytest.mark.parametrize("damage", ["empty", "no such module", "compressed"])
def test_what_cannot_be_read_is_damage(tmp_path, damage):
    journal, stored = Journal.open(tmp_path / "journal", "k", pytest.fail), tmp_path / "journal" / "state.npz"
    if damage == "empty":
        stored.write_bytes(b"")
    elif damage == "no such module":
        tree = b'["class", "flatlm.export.nowhere", "Gone", ["dict", []]]'
        np.savez(stored, np.frombuffer(tree, np.uint8))
    else:
        np.savez_compressed(stored, np.zeros(1000))
        content = bytearray(stored.read_bytes())
        start = 30 + sum(struct.unpack("<HH", content[26:30]))  # of the stream, after the local header
        content[start] = 0xFF  # a block type that does not exist
        stored.write_bytes(content)
    assert journal.load("state") is None


@pytest.mark.parametrize("what", ["a file", "a key that is not text"])
def test_a_journal_that_is_none_is_thrown_away_and_told_so(tmp_path, what):
    folder = tmp_path / "journal"
    if what == "a file":
        folder.write_text("journal")
    else:
        folder.mkdir()
        (folder / "key").write_bytes(b"\xff\xfe")
    told = []
    journal = Journal.open(folder, "k", told.append)
    journal.save("state", 1)
    assert journal.load("state") == 1
    assert "starting anew" in told[0]


def test_the_key_knows_source_recipe_tokens_and_version():
    recipe, tokens = RECIPES["edge"], np.arange(5)
    other = dataclasses.replace(recipe, **TINY)
    cases = [("s", recipe, tokens, "1"), ("t", recipe, tokens, "1"), ("s", other, tokens, "1")]
    cases += [("s", recipe, tokens[1:], "1"), ("s", recipe, tokens, "2")]
    keys = {key(*case) for case in cases}
    assert len(keys) == 5


@pytest.mark.parametrize(
    "file",
    ["export/passes/grid.py", "runtime/format/nested.py", "kernels_arm/layout.py", "kernels_arm/team.py"],
)
def test_the_key_knows_every_source_that_may_have_a_part_in_it(file, monkeypatch):
    case, read = ("s", RECIPES["edge"], np.arange(5), "1"), Path.read_bytes
    edited = Path(journal.__file__).parents[1] / file
    before = key(*case)
    assert key(*case) == before
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"# edited" * (path == edited))
    assert key(*case) != before
