"""flatlm.runtime.evaluation.programs: what passes, what does not, and what a program cannot do."""

from __future__ import annotations

import signal
import socket

import pytest

from flatlm.runtime.evaluation import programs
from flatlm.runtime.evaluation.programs import Limits, assemble, run

PROMPT = (
    'from typing import List\n\ndef half(x):\n    return x / 2\n\ndef square(x: int) -> int:\n    """doc"""\n'
)
TESTS = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-3) == 9\n"
LIMITS = Limits(cpu_seconds=1, wall_seconds=120, memory=2**28, file_size=2**16)


def verdict(body, limits=LIMITS):
    lines = "\n".join("    " + line for line in body.split("\n"))
    return run(assemble(PROMPT, "square", TESTS, lines), limits)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return x * x", "passed"),
        ("return 4", "failed: AssertionError"),
        ("return y", "failed: NameError"),
        ("return x *", "failed: SyntaxError"),
        ("while True: pass", "timeout"),
        ("rows = []\nwhile True: rows.append(bytearray(2**24))", "failed: MemoryError"),
        ("return square(x)", "failed: RecursionError"),
        ("with open('big', 'wb') as file: file.write(b'0' * 2**20)\nreturn x * x", "failed: OSError"),
        ("import sys\nsys.exit(0)", "failed: SystemExit"),
        ("raise SystemExit", "failed: SystemExit"),
        ("import os\nos._exit(0)", "died"),
        ("import os\nos.abort()", "died"),
        ("input()\nreturn x * x", "failed: EOFError"),
        ("for _ in range(10**5): print('passed')\nreturn x * x", "passed"),
        ("print('passed')\nimport sys\nsys.stdout.flush()\nreturn 0", "failed: AssertionError"),
        ("import math, re, itertools, collections, hashlib, heapq\nreturn x * x", "passed"),
        ("open('mine', 'w').write('x')\nreturn x * x", "passed"),
        ("import os\nos.fork()\nreturn x * x", "failed: PermissionError"),
        ("import os\nos.kill(os.getppid(), 9)\nreturn x * x", "failed: PermissionError"),
        ("import subprocess\nsubprocess.run(['true'])\nreturn x * x", "failed: PermissionError"),
        ("import os\nos.system('true')\nreturn x * x", "failed: PermissionError"),
        ("import os\nos.remove('mine')\nreturn x * x", "failed: PermissionError"),
        ("import shutil\nshutil.rmtree('.')\nreturn x * x", "failed: PermissionError"),
        ("import os\nassert sorted(os.listdir('.')) == []\nreturn x * x", "passed"),
        ("import os\nassert 'SECRET' not in os.environ\nreturn x * x", "passed"),
    ],
)
def test_a_program_passes_only_when_its_last_test_has_passed(body, expected, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    assert verdict(body) == expected


def test_a_program_that_waits_is_stopped_by_the_clock():
    assert verdict("import time\ntime.sleep(60)", Limits(wall_seconds=0.5)) == "timeout"


def test_a_program_reaches_no_server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        body = f"import socket\nsocket.create_connection(('127.0.0.1', {port}))\nreturn x * x"
        assert verdict(body) == "failed: PermissionError"
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_program_writes_only_in_its_folder(tmp_path):
    target = tmp_path / "outside"
    assert verdict(f"open({str(target)!r}, 'w')\nreturn x * x") == "failed: PermissionError"
    assert (
        verdict(f"import os\nos.open({str(target)!r}, os.O_CREAT)\nreturn x * x") == "failed: PermissionError"
    )
    assert not target.exists()


def test_no_program_outlives_an_interrupt(monkeypatch):
    started = []
    start = programs._start

    def remember(*arguments):
        started.append(start(*arguments))
        return started[0]

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(programs, "_start", remember)
    monkeypatch.setattr(programs, "_read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        verdict("while True: pass")
    assert started[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            "Sure:\n```python\ndef square(x):\n    return half(x) * x * 2\n```\nUse:\n```\nsquare(2)\n```",
            "passed",
        ),
        ("```\ndef square(x: List) -> int:\n    return x * x", "passed"),
        ("def square(x):\n    return x * x", "passed"),
        ("```python\n    return x * x\n```", "passed"),
        ("```python\ndef cube(x):\n    return x * x\n```", "failed: AssertionError"),
        ("I would multiply it.", "failed: SyntaxError"),
        ("", "failed: AssertionError"),
    ],
)
def test_the_function_is_found_in_an_answer(answer, expected):
    assert run(assemble(PROMPT, "square", TESTS, answer), LIMITS) == expected
