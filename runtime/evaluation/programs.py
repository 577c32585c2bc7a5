"""Programs that a model wrote: taken out of its answer, and run with their tests in a process of their own.

The process has limits on time, memory, file size and processes, an empty folder to write into, and a guard
that refuses the usual ways to start programs, to open sockets and to write elsewhere (program_child.py). That
keeps the accidents of a small model from doing harm. It is no wall: the guard is Python in the process it
guards, and code written to break out, or to pass without passing, can. Run that in a virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from flatlm.runtime.errors import ResourceError

MOST_VERDICT = 4096  # bytes
PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4  # of Linux's prctl
PASSED, TIMEOUT, DIED = "passed", "timeout", "died"
CHILD = Path(__file__).with_name("program_child.py")
KEPT = ("PATH", "LD_LIBRARY_PATH")  # of the environment: what Python itself needs, under Termux for instance

SET = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}  # the same each time; numpy must not start threads


@dataclass(frozen=True)
class Limits:
    """What a program may use. The wall clock is for programs that wait: a busy machine is not their fault."""

    cpu_seconds: int = 10
    wall_seconds: float = 60.0
    memory: int = 2**30  # bytes of address space
    file_size: int = 2**20  # bytes of each file
    files: int = 32  # open at once


def assemble(prompt: str, entry_point: str, tests: str, answer: str) -> str:
    """The program that fails where `answer` does not pass `tests`.

    `answer` is the body that continues `prompt`, or has the function in a ``` block or as plain text; what
    stands in the prompt before the function (imports, helpers) is there for it.
    """
    definition = re.compile(rf"^[ \t]*(?:async +)?def +{re.escape(entry_point)}\b", re.MULTILINE)
    blocks = re.findall(r"```[^\n`]*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    whole = [block for block in (*blocks, answer) if definition.search(block)]
    if whole:
        start = definition.search(prompt)
        solution = prompt[: start.start() if start else 0] + "\n" + whole[0]
    else:
        solution = prompt + (blocks[0] if blocks else answer)
    return f"{solution}\n\n{tests}\n\ncheck({entry_point})\n"


def run(program: str, limits: Limits | None = None) -> str:
    """`passed`, or why not: `failed: AssertionError`, `timeout`, `died`.

    The verdict comes through a pipe of its own after the last line of the program, with a word that the
    program is not shown: what it prints, the status it exits with and what it writes to the pipe are none.
    Raises ResourceError where there is no folder for it.
    """
    limits, nonce = limits or Limits(), secrets.token_hex(16)
    with _folder() as folder:
        reader, writer = os.pipe()
        try:
            process = _start(folder, writer)
        finally:
            os.close(writer)  # ours; the verdict ends when the child's copy is closed too
        try:
            assert process.stdin is not None  # it was asked for
            request = {"program": program, "limits": asdict(limits), "nonce": nonce}
            with _closed_to_others():
                with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                    stdin.write(json.dumps(request).encode())
                said = _read(reader, time.monotonic() + limits.wall_seconds)
        finally:
            os.close(reader)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # before wait: until then the number is not used again
            status = process.wait()
    if said is None or status == -signal.SIGXCPU:
        return TIMEOUT
    word, _, verdict = said.partition(" ")
    return verdict if word == nonce else DIED


def _folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="flatlm-program-", ignore_cleanup_errors=True)
    except OSError as error:
        raise ResourceError(
            f"programs need a temporary folder, and none can be made ({error}): set TMPDIR to one with room"
        ) from None


@contextlib.contextmanager
def _closed_to_others() -> Iterator[None]:
    """On Linux: /proc shows nothing of this process's memory and environment to others of the same user."""
    import ctypes

    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        yield
        return
    before = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_DUMPABLE, before, 0, 0, 0)


def _start(folder: str, verdict: int) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-s", str(CHILD), str(verdict)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={**environment, **SET, "HOME": folder, "TMPDIR": folder},
        pass_fds=(verdict,),
        start_new_session=True,
    )


def _read(pipe: int, deadline: float) -> str | None:
    """The line in `pipe`, "" where it was closed without one or is too long, None at the `deadline`."""
    received = b""
    while not received.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return None
        part = os.read(pipe, MOST_VERDICT)
        if not part or len(received) > MOST_VERDICT:
            return ""
        received += part
    return received.decode(errors="replace").strip()
