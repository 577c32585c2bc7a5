"""flatlm.runtime.evaluation.programs: what passes, what does not, and what a program cannot do."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from flatlm.runtime.errors import ResourceError
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


ESCAPES = {
    "constants of the guard": "import __main__\n__main__.WRITING = 0\n__main__.REFUSED = ()\nopen(OUT, 'w')",
    "its builtins": "import builtins\nbuiltins.isinstance = lambda *_: False\nopen(OUT, 'w')",
    "its modules": "import os\nos.path.realpath = lambda _: os.getcwd() + '/x'\nopen(OUT, 'w')",
    "a path of a class": (
        "class Path(str):\n    def startswith(self, *_): return False\n    def split(self, *_): return []\n"
        "open(Path(OUT), 'w')"
    ),
    "a path that is none": (
        "import os, pathlib\nos.open(pathlib.Path(OUT), os.O_CREAT | os.O_WRONLY)"
    ),
    "a path back": "import os\nopen(os.path.relpath(OUT), 'w')",
    "bytes": "open(OUT.encode(), 'w')",
    "dir_fd": "import os\nfd = os.open(OUT[:-7], os.O_RDONLY)\nos.open('outside', os.O_CREAT, dir_fd=fd)",
    "SQL": "import sqlite3\nsqlite3.connect(OUT).execute('create table x (y)')",
    "C": "import ctypes\nctypes.CDLL(None).creat(OUT.encode(), 0o600)",
    "garbage": "import gc\ngc.get_objects()",
    "limits of others": "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "its parent's environment": "import os\nopen(f'/proc/{os.getppid()}/environ').read()",
    "the same by another way": "open('/dev/fd/../../1/environ').read()",
    "processes": "import _posixsubprocess",
    "modules again": "import sys\ndel sys.modules['posix']\nimport posix",
    "history": "import readline",
    "a trace": "import sys\nsys.settrace(print)",
}  # fmt: skip


@pytest.mark.parametrize("name", ESCAPES)
def test_what_a_solution_has_no_need_of_is_refused(name, tmp_path):
    target = tmp_path / "outside"
    assert verdict(f"OUT = {str(target)!r}\n{ESCAPES[name]}\nreturn x * x") == "failed: PermissionError"
    assert not target.exists()


@pytest.mark.parametrize(
    ("module", "name"), [("os", "mknod"), ("posix", "setpriority"), ("signal", "pidfd_send_signal")]
)
def test_what_no_hook_hears_of_is_not_there(module, name):
    assert verdict(f"import {module}\n{module}.{name}\nreturn x * x") == "failed: AttributeError"
    assert (
        verdict("import os\nreturn x * x + any(f.__name__ == 'mknod' for f in os.supports_dir_fd)")
        == "passed"
    )


FORGERIES = {
    "to the pipe": "import os, sys\nos.write(int(sys.argv[1]), b'passed\\n')\nos._exit(0)",
    "with a word": "import os, sys\nos.write(int(sys.argv[1]), b'0' * 32 + b' passed\\n')\nos._exit(0)",
    "by the event": "import os, sys\nsys.audit('flatlm.verdict', 'passed')\nos._exit(0)",
    "a name without an end": "raise type('x' * 10**7, (Exception,), {})",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_verdict_is_not_what_a_program_writes(name):
    assert verdict(FORGERIES[name]) in ("died", "failed: " + "x" * 100)


def test_a_program_that_writes_for_ever_is_stopped():
    body = "import os, sys\nwhile True: os.write(int(sys.argv[1]), b'x' * 4096)"
    assert verdict(body, Limits(wall_seconds=5.0)) == "died"
    body = "import os, sys, time\nwhile True: os.write(int(sys.argv[1]), b'x'); time.sleep(0.01)"
    assert verdict(body, Limits(wall_seconds=1.0)) == "timeout"


def test_libraries_can_be_used():
    body = "import numpy, dataclasses, typing, tempfile, random, decimal, fractions, string, datetime, copy"
    assert verdict(f"{body}\nreturn int(numpy.array([x * x])[0])", Limits()) == "passed"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="Linux")
def test_the_parent_is_closed_to_others_only_while_a_program_runs(monkeypatch):
    import ctypes

    def dumpable():
        return ctypes.CDLL(None).prctl(programs.PR_GET_DUMPABLE, 0, 0, 0, 0)

    before, seen = dumpable(), []
    read = programs._read
    monkeypatch.setattr(programs, "_read", lambda *given: seen.append(dumpable()) or read(*given))
    assert verdict("return x * x") == "passed"
    assert (seen, dumpable()) == ([0], before)


def test_without_a_temporary_folder_the_error_says_so(monkeypatch):
    def missing(**_):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(programs.tempfile, "TemporaryDirectory", missing)
    with pytest.raises(ResourceError, match="TMPDIR"):
        verdict("return x * x")


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
