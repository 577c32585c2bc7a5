"""Faults on purpose: a command that leaves half of something is found out, and a real one is not"""

from __future__ import annotations

import errno
import json
import os
import sys
from random import Random

import pytest

from flatlm.runtime import cli
from flatlm.runtime.errors import ResourceError, UsageError
from flatlm.runtime.evaluation.run_file import RunFile, read_run
from tests.chaos.faults import possible
from tests.chaos.trial import Trials
from tests.chaos.victims import VICTIMS, Victim

if not hasattr(os, "fork"):
    pytest.skip("faults are signals and limits of POSIX", allow_module_level=True)

SLOW_WRITER = """
import os, sys, time
from pathlib import Path
trial = Path(sys.argv[1])
print("begun", flush=True)
{leaving}
with (trial / "result").open("wb") as file:
    for number in range(20):
        file.write(bytes([number]) * 100)
        file.flush()
        time.sleep(0.02)
"""
CHILD = "os.fork() or (time.sleep(20), os._exit(0))"
TEMPORARY = (
    "Path(os.environ['TMPDIR'], 'left').touch(); import signal; signal.signal(15, lambda *_: sys.exit(143))"
)


def writer(leaving=""):
    """A command that writes its result in place, and something more that it may leave."""

    def made(trial, _):
        if not (file := trial / "result").exists():
            return None
        assert len(file.read_bytes()) == 2000, "half a result"
        return file.read_bytes()

    code = SLOW_WRITER.format(leaving=leaving)
    return Victim(lambda inputs: None, lambda inputs, trial: [sys.executable, "-c", code, str(trial)], made)


@pytest.mark.parametrize(
    ("leaving", "told"),
    [("", "damaged: half a result"), (CHILD, "runs on"), (TEMPORARY, "temporary files are left")],
)
def test_what_is_left_behind_is_told(tmp_path, leaving, told):
    wrong, struck, random = list[str](), 0, Random(1)
    trials = Trials(writer(leaving), tmp_path)
    for _ in range(8):
        found, hit = trials.try_faults(["term"], random)
        wrong, struck = wrong + found, struck + hit
        if any(told in what for what in wrong):
            return
    pytest.fail(f"{struck} of 8 struck, told was {wrong}")


@pytest.mark.parametrize("name", ["generate", "pull"])
def test_a_real_command_leaves_nothing(tmp_path, name):
    random = Random(5)
    trials = Trials(VICTIMS[name], tmp_path)
    for _ in range(3):
        wrong, _ = trials.try_faults(random.choices(possible(), k=2), random)
        assert wrong == []


def test_a_run_on_a_full_disk_says_so_and_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = RunFile(path, {"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match=r"run.jsonl is full; make room"):
            run.append({"id": "0"})
    run.close()
    lines = path.read_text().splitlines()
    assert [json.loads(line).get("id") for line in lines] == [None, "0"]
    with pytest.raises(UsageError, match="line 2"):
        read_run(path)  # the half of a record that this test wrote is told, not taken


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: make room"),
        (OSError(errno.EFBIG, "File too large"), "the disk takes no file this large"),
        (RuntimeError("can't start new thread"), "no more threads: fewer --threads"),
    ],
)
def test_what_the_system_refuses_is_no_bug_of_ours(monkeypatch, capfd, error, told):
    def refused(_):
        raise error

    monkeypatch.setattr(cli, "_dispatch", refused)
    assert cli.main(["info"]) == 1
    assert told in capfd.readouterr().err
