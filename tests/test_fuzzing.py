"""The fuzzer: it finds what was planted, makes it small and keeps it; and what it found once stays mended."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.runtime.errors import FormatError
from tests.fuzzing import mutation
from tests.fuzzing import search as searching
from tests.fuzzing.artifacts import message_of
from tests.fuzzing.findings import keep, kept
from tests.fuzzing.lines import Reached, lines_of
from tests.fuzzing.messages import tree_of, written
from tests.fuzzing.minimise import minimise
from tests.fuzzing.search import Result, search
from tests.fuzzing.target import Case, Limits, Prepared, Target
from tests.fuzzing.targets import TARGETS
from tests.fuzzing.worker import Reply, Worker
from tests.tiny_graphs import quantized_graph

if not hasattr(os, "fork"):
    pytest.skip("the fuzzer's child is a fork", allow_module_level=True)

ROOT = Path(__file__).parent.parent
QUICK = Limits(seconds=0.2, memory=1 << 28, output=1 << 16)


def waits():
    time.sleep(1000)


def computes():
    while True:
        pass


PLANTED = {
    "crash": lambda: ctypes.string_at(0),
    "hang": computes,
    "memory": lambda: bytearray(1 << 40),
    "exception": lambda: {}["key"],
    "output": lambda: os.write(1, bytes(1 << 17)),
}


def planted(what):
    """A reader that refuses the half of all contents and does `what` where one is no ASCII."""

    def run(case):
        if not case.content.isascii():
            what()
        if len(case.content) % 2:
            raise FormatError("odd")

    cases = st.binary(max_size=20).map(lambda content: Case("file", b"file: " + content))
    return Target("planted", ("flatlm.runtime.progress",), lambda folder: Prepared(cases, run), QUICK)


@pytest.mark.parametrize("kind", PLANTED)
def test_what_was_planted_is_found_and_small(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("tests.fuzzing.search.SHRINKING", 0.5)
    target = planted(PLANTED[kind])
    result = search(target, target.prepare(tmp_path), 0.8, number=1)
    ((finding, case),) = result.findings
    assert finding.kind == kind
    assert not case.content.isascii() and len(case.content) < (27 if kind == "hang" else 9)


def test_a_child_that_only_waits_is_found_too(monkeypatch):
    monkeypatch.setattr("tests.fuzzing.worker.WAITING", 0.5)
    with Worker(lambda case: waits(), QUICK, set()) as worker:
        assert worker.run(Case("file", b"")).finding.kind == "hang"


def test_a_right_reader_has_no_findings_and_its_child_goes_on_after_a_crash(tmp_path):
    target = planted(lambda: None)
    result = search(target, target.prepare(tmp_path), 0.5, number=1)
    assert result.findings == [] and 0 < result.refused < result.cases
    with Worker(planted(PLANTED["crash"]).prepare(tmp_path).run, QUICK, set()) as worker:
        replies = [worker.run(Case("file", content)) for content in (b"aa", b"\x80", b"a", b"aa")]
    assert [reply.finding and reply.finding.kind for reply in replies] == [None, "crash", None, None]
    assert [reply.refused for reply in replies] == [False, False, True, False]


def test_a_seed_says_which_cases_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "COMMON", settings(searching.COMMON, max_examples=30))
    prepared = planted(lambda: None).prepare(tmp_path)

    def drawn(number):
        worker = Recorder()
        searching._round(worker, prepared, Result("planted", number), number, time.monotonic() + 100)
        return worker.seen

    assert drawn(1) == drawn(1) != drawn(2)


class Recorder:
    """A worker that runs nothing."""

    def __init__(self):
        self.seen = []

    def run(self, case, traced=False):
        self.seen.append(case)
        return Reply()


def test_lines_are_those_of_functions_and_are_told_once():
    from flatlm.runtime.format import protobuf

    wanted = lines_of(["flatlm.runtime.format.protobuf"])
    reached = Reached(wanted)
    new = reached.watch(lambda: protobuf.signed(3))
    assert new and set(new) < wanted
    assert reached.watch(lambda: protobuf.signed(3)) == []
    assert sys.gettrace() is None or "coverage" in repr(sys.gettrace())


def test_what_a_finding_does_not_need_is_left_out():
    text = json.dumps({"a": [1, {"b": 2, "bad": 3}], "c": "x"}).encode()
    until = time.monotonic() + 10
    assert json.loads(minimise(text, lambda content: b"bad" in content, until)) == {"a": [{"bad": 3}]}
    assert minimise(b"\x00" * 99 + b"bad" + b"\xff" * 99, lambda content: b"bad" in content, until) == b"bad"
    assert minimise(text, lambda content: False, until) == text


def test_a_message_survives_being_a_tree():
    message = message_of(quantized_graph())
    assert tree_of(written(tree_of(message))) == tree_of(message)


@settings(max_examples=30)
@given(
    mutation.json_bytes([{"a": [1, "x"], "b": {"c": 2.5}}]), mutation.field_changes([[b"ab", b"\x01\0\0\0"]])
)
def test_changes_are_bytes_whatever_is_drawn(text, fields):
    assert isinstance(text, bytes) and isinstance(fields, bytes)


def test_a_case_is_kept_under_its_digest_and_name(tmp_path):
    case = Case("config.json", b"{}")
    assert keep("run file", case, tmp_path).name.endswith("-config.json")
    assert kept("run file", tmp_path) == [case]


@pytest.mark.parametrize("name", [name for name in TARGETS if kept(name)])
def test_what_was_found_stays_mended(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    target = TARGETS[name]
    prepared = target.prepare(tmp_path)
    with Worker(prepared.run, target.limits, set()) as worker:
        found = [
            (case.name, str(reply.finding)) for case in kept(name) if (reply := worker.run(case)).finding
        ]
    assert found == []


def test_every_target_can_be_prepared_and_finds_nothing_in_its_first_cases(tmp_path):
    """In a process of its own: a child of one with threads may inherit a lock that is held."""
    command = [sys.executable, "-m", "tests.fuzzing", "all", "--seconds", "0.2", "--keep", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(name in done.stdout for name in TARGETS)
