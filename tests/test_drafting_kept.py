"""runtime.drafting.kept_costs: a process begins with what the last one measured, and nothing can break it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runtime.artifact import open_artifact
from runtime.drafting.costs import SLOPE
from runtime.drafting.kept_costs import KeptCosts
from runtime.drafting.schedule import Schedule
from runtime.llm import LLM
from tests.test_nested import exported

HOW = "native, 2 threads"


def artifact(sha256="ab"):
    entry = SimpleNamespace(sha256=sha256)
    return SimpleNamespace(manifest=SimpleNamespace(files={"model.onnx.data": entry}))


def measure(folder, seconds, role="target", how=HOW):
    kept = KeptCosts(how, folder)
    costs = kept.of(artifact(), role)
    for rows, time in seconds.items():
        costs.add(rows, time)
    kept.write()


def test_the_next_process_knows_what_this_one_measured(tmp_path):
    assert not KeptCosts(HOW, tmp_path).of(artifact(), "target")
    measure(tmp_path, {1: 0.02, 8: 0.03})
    costs = KeptCosts(HOW, tmp_path).of(artifact(), "target")
    assert costs.averages == {1: 0.02, 8: 0.03}
    assert costs(9) == pytest.approx(0.03 + SLOPE * 0.02)
    assert Schedule(costs).may_draft()
    costs.add(1, 0.04)
    assert costs(1) == pytest.approx(0.025)  # a moving average of both


def test_a_pass_costs_what_it_did_in_the_same_role_and_run_the_same_way(tmp_path):
    measure(tmp_path, {1: 0.02})
    for how, role, sha256 in (
        ("numpy, 2 threads", "target", "ab"),
        (HOW, "drafter", "ab"),
        (HOW, "target", "cd"),
    ):
        assert not KeptCosts(how, tmp_path).of(artifact(sha256), role)


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[1, 2]", b'{"1": "x"}', b'{"0": 1}', b'{"1": -1}', b'{"1": NaN}', b'{"1": [1]}', b"\xff"],
)
def test_a_damaged_file_is_one_that_is_not_there_and_is_replaced(damage, tmp_path):
    measure(tmp_path, {1: 0.02})
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    assert not KeptCosts(HOW, tmp_path).of(artifact(), "target")
    measure(tmp_path, {1: 0.03})
    assert KeptCosts(HOW, tmp_path).of(artifact(), "target").averages == {1: 0.03}


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path):
    (tmp_path / "file").write_text("in the way")
    measure(tmp_path / "file" / "costs", {1: 0.02})
    assert not KeptCosts(HOW, tmp_path / "file" / "costs").of(artifact(), "target")


def test_who_measured_nothing_leaves_the_file_alone(tmp_path):
    measure(tmp_path, {1: 0.02})
    (path,) = tmp_path.iterdir()
    path.chmod(0o444)
    before = path.stat()
    measure(tmp_path, {})
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino


def test_a_model_that_is_closed_keeps_its_costs_and_those_of_its_drafters(tmp_path, monkeypatch):
    folder = exported(tmp_path, "nested")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with LLM(folder, threads=1, draft="auto:nested") as llm:
        llm.generate("ab", n=24)
        target = llm.speculator._drafter.schedule.target.averages
        models = [leaf.costs.averages for leaf in llm.speculator.leaves if leaf.name == "nested"]
    assert target and not list((tmp_path / "cache").rglob("*.part"))
    kept = KeptCosts("native, 1 threads")
    assert kept.of(open_artifact(folder), "target").averages == target
    assert [kept.of(open_artifact(folder), "nested").averages] == models
