"""flatlm.runtime.drafting.kept: a process begins with what the last one learned, and nothing can break it."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from flatlm.runtime.drafting import Offer, Place
from flatlm.runtime.drafting.costs import SLOPE, STALE
from flatlm.runtime.drafting.kept import Kept
from flatlm.runtime.drafting.readings import HORIZON
from flatlm.runtime.drafting.schedule import FADE
from flatlm.runtime.drafting.verify import invariant
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.generation.sampler import make_sampler
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import SamplingOptions
from tests.test_nested import exported

HOW = "native, 2 threads"


def artifact(sha256="ab"):
    entry = SimpleNamespace(sha256=sha256)
    return SimpleNamespace(manifest=SimpleNamespace(files={"model.onnx.data": entry}))


def measure(folder, seconds):
    kept = Kept(HOW, folder)
    costs = kept.costs(artifact(), "target")
    for rows, time in seconds.items():
        costs.add(rows, time)
    kept.write()


def begun(folder):
    return Kept(HOW, folder).costs(artifact(), "target")


def test_the_next_process_knows_what_this_one_measured(tmp_path):
    assert not begun(tmp_path)
    measure(tmp_path, {8: 0.03, 1: 0.02})
    costs = begun(tmp_path)
    assert (costs(1), costs(8)) == (0.02, 0.03)
    assert costs(9) == pytest.approx(0.03 + SLOPE * 0.02)
    costs.add(1, 0.04)
    assert costs(1) == pytest.approx(0.025)  # a moving average of both


def test_chances_and_the_rate_are_kept_as_faded_as_they_are(tmp_path):
    def schedule(drafters=("maxgram", "m")):
        kept = Kept(HOW, tmp_path)
        return kept, kept.schedule(artifact(), drafters)

    kept, first = schedule()
    first.lengths.recall([40] * 8)
    for _ in range(50):
        first.note("m", 3, right=True)
    first.spend(4, 1.0, 1.0, 4, 0.0)
    for _ in range(FADE):
        first.spend(1, 0.5, 0.5, 1, 0.0)
    kept.write()
    _, second = schedule()
    assert not second.may_draft()  # not before a plain pass says how fast the machine is now
    second.settle(2 * first.target(1))
    second.spend(1, 2 * first.target(1), 2 * first.target(1), 1, 0.0)
    assert second.may_draft()
    assert second.target(4) == pytest.approx(2 * first.target(4))
    assert second.odds("m", 3, 0.1) == pytest.approx(first.odds("m", 3, 0.1), rel=1e-3)
    assert second.lengths.rest(10) == 30
    _, other = schedule(("maxgram",))
    assert other.odds("m", 3, 0.1) == 0.1


def test_a_pass_costs_what_it_did_in_the_same_role_and_run_the_same_way(tmp_path):
    measure(tmp_path, {1: 0.02})
    assert begun(tmp_path)
    for how, role, sha256 in (
        ("numpy, 2 threads", "target", "ab"),
        (HOW, "drafter", "ab"),
        (HOW, "target", "cd"),
    ):
        assert not Kept(how, tmp_path).costs(artifact(sha256), role)


DAMAGE = (
    b"", b"{", b"\xff", b"[1, 2]", b'"x"', b"[" * 100_000,
    b'{"rows": 1}', b'{"rows": [[1, 0.1]]}', b'{"rows": [[0, 0.1, 1]]}', b'{"rows": [[1, -0.1, 1]]}',
    b'{"rows": [[1, NaN, 1]]}', b'{"rows": [[1, 1e-320, 1]]}', b'{"rows": [[1, 1' + b"0" * 400 + b", 1]]}",
    b'{"tokens_per_plain_step": 2}', b'{"tokens_per_plain_step": 0, "chances": []}',
    b'{"tokens_per_plain_step": 2, "chances": [["m", 3]]}',
    b'{"tokens_per_plain_step": 2, "chances": [["m", 3, 2.0, 1.0]]}',
    b'{"tokens_per_plain_step": 2, "chances": [["m", Infinity, 0, 1]]}',
    b'{"tokens_per_plain_step": 2, "chances": []}',
    b'{"tokens_per_plain_step": 2, "chances": [], "readings": {"m": -1}}',
    b'{"tokens_per_plain_step": 2, "chances": [], "readings": [1]}',
    b'{"tokens_per_plain_step": 2, "chances": [], "readings": {"m": 2}, "lengths": [0]}',
    b'{"tokens_per_plain_step": 2, "chances": [], "readings": {"m": 2}, "lengths": 7}',
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_that_is_not_there_and_is_replaced(damage, tmp_path):
    def learn():
        kept = Kept(HOW, tmp_path)
        schedule = kept.schedule(artifact(), ["m"])
        schedule.note("m", 3, right=True)
        schedule.spend(1, 0.5, 0.5, 1, 0.0)
        kept.write()

    learn()
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(whole) == 2
    for path in whole:
        path.write_bytes(damage)
    schedule = Kept(HOW, tmp_path).schedule(artifact(), ["m"])
    assert not schedule.target and schedule.odds("m", 3, 0.1) == 0.1
    assert schedule.readings.serves("m") == HORIZON
    learn()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_no_link_that_waits_for_the_name_is_followed(tmp_path):
    measure(tmp_path / "costs", {1: 0.02})
    (path,) = (tmp_path / "costs").iterdir()
    (tmp_path / "victim").write_text("kept")
    path.with_suffix(f".{os.getpid()}.part").symlink_to(tmp_path / "victim")
    measure(tmp_path / "costs", {1: 0.03})
    assert (tmp_path / "victim").read_text() == "kept"
    assert list((tmp_path / "costs").iterdir()) == [path]


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path):
    (tmp_path / "file").write_text("in the way")
    measure(tmp_path / "file" / "costs", {1: 0.02})
    assert not begun(tmp_path / "file" / "costs")


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("flatlm.runtime.drafting.kept.cache_folder", homeless)
    kept = Kept(HOW)
    kept.costs(artifact(), "target").add(1, 0.02)
    kept.write()
    assert not Kept(HOW).costs(artifact(), "target")


def homeless():
    raise RuntimeError("Could not determine home directory.")


def test_what_was_not_measured_again_for_long_is_forgotten_by_short_processes_too(tmp_path):
    measure(tmp_path, {1: 0.02, 300: 5.0})
    for _ in range(STALE // 20 + 1):
        kept = Kept(HOW, tmp_path)
        costs = kept.costs(artifact(), "target")
        for _ in range(20):
            costs.add(1, 0.02)
        kept.write()
    assert begun(tmp_path)(300) < 1.0


def test_who_learned_nothing_leaves_the_file_alone(tmp_path):
    measure(tmp_path, {1: 0.02})
    (path,) = tmp_path.iterdir()
    before = path.stat()
    measure(tmp_path, {})
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_model_that_is_closed_keeps_what_it_knows_and_answers_the_same_with_it(tmp_path, kept_folder):
    folder = exported(tmp_path, "nested")
    answers = []
    for _ in range(2):
        with LLM(folder, threads=1, ctx=128, draft="auto:nested") as llm:
            answers.append(llm.generate("once upon a time", n=40).tokens)
            (model,) = (leaf for leaf in llm.speculator.leaves if leaf.name == "nested")
            state = model.begin(invariant(make_sampler(SamplingOptions())))
            for ids in ([1, 2], [1, 2, 3]):  # whether the schedule asked it depends on the clock
                model.draft([Offer(Place(state, ids, 1))])
    assert answers[0] == answers[1]
    assert [path.suffix for path in kept_folder.iterdir()] == [".json"] * 3
    kept = Kept("native, cpu, 1 threads")
    assert kept.schedule(open_artifact(folder), ["maxgram", "nested"]).unsettled
    costs = kept.costs(open_artifact(folder), "nested")
    assert costs and costs(1) == model.costs(1)
