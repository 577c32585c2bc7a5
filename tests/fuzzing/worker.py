"""The child that runs cases: forked from the process that made the good files, replaced when it dies.

One child runs many cases, so a cheap one costs little more than itself. Where the child dies, the case it was
running is the finding.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import re
import resource
import signal
import socket
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, NoReturn

from flatlm.runtime.errors import FlatlmError
from tests.fuzzing.lines import Line, Reached
from tests.fuzzing.target import Case, Limits

ROOT = Path(__file__).parent.parent.parent
LONGEST_FILE = 1 << 26  # bytes a case may write
CASES_A_CHILD = 5000  # then a new one: what leaks bit by bit is not the last case's doing
TRACED = 3  # times the processor's seconds that a case may take whose lines are counted
WAITING = 10  # times the processor's seconds that a case may take by the clock, and as many seconds more


@dataclass(frozen=True)
class Finding:
    """`kind`: exception, crash, hang, memory, output. `where` tells one defect from another."""

    kind: str
    where: str
    what: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.kind} at {self.where}: {self.what}"


@dataclass(frozen=True)
class Reply:
    """Of one case: `refused` by a FlatlmError or not; `lines` that no case before it reached, if traced."""

    finding: Finding | None = None
    refused: bool = False
    lines: list[Line] = field(default_factory=list)


class Worker:
    """Runs cases with `run` in a child within `limits`."""

    def __init__(self, run: Callable[[Case], object], limits: Limits, wanted: set[Line]) -> None:
        self._run, self._limits, self._wanted = run, limits, wanted
        self._pid = self._cases = 0
        self._pipe: Connection
        self._output: IO[bytes]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, case: Case, traced: bool = False) -> Reply:
        """What the child made of the case, or what became of the child."""
        if self._pid and self._cases >= CASES_A_CHILD:
            self.stop()
        if not self._pid:
            self._start()
        self._cases += 1
        try:
            self._pipe.send((case, traced))
            if self._pipe.poll(WAITING * (self._limits.seconds + 1)):
                reply: Reply = self._pipe.recv()
                return reply
        except (EOFError, OSError):  # it died
            return Reply(self._died())
        self.stop()
        return Reply(Finding("hang", "waiting", "it waits and does not compute"))

    def stop(self) -> None:
        """End the child; the next case has a new one."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._reap()

    def _reap(self) -> int:
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._pipe.close()
        self._output.close()
        self._pid = self._cases = 0
        return status

    def _died(self) -> Finding:
        self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - 8192))
        said = self._output.read().decode(errors="replace")
        status = self._reap()
        name = signal.Signals(-status).name if status < 0 else f"exit {status}"
        stack = re.findall(r'File "([^"]+)", line (\d+)', said)
        where = next((_place(file, line) for file, line in stack if _ours(file)), name)
        if name == "SIGPROF":
            return Finding("hang", where, f"more than {self._limits.seconds:g} s of the processor")
        return Finding("crash", where, name)

    def _start(self) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  as long as the child
        self._pipe, theirs = Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads; the child uses none of them
            self._pid = os.fork()
        if not self._pid:
            self._pipe.close()
            _serve(theirs, self._output, self._run, self._limits, self._wanted)
        theirs.close()


def _serve(
    pipe: Connection,
    output: IO[bytes],
    run: Callable[[Case], object],
    limits: Limits,
    wanted: set[Line],
) -> NoReturn:
    """The child's life."""
    try:
        _limit(output, limits)
        reached = Reached(wanted)
        while True:
            case, traced = pipe.recv()
            random.seed(0)
            pipe.send(_one(lambda case=case: run(case), limits, output, reached if traced else None))  # type: ignore[misc]
    finally:
        os._exit(0)  # the parent is gone


def _limit(output: IO[bytes], limits: Limits) -> None:
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LONGEST_FILE, LONGEST_FILE))
    mapped = _mapped()
    if mapped:
        resource.setrlimit(resource.RLIMIT_AS, (mapped + limits.memory,) * 2)
    faulthandler.enable(output)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    faulthandler.register(signal.SIGPROF, output, all_threads=False, chain=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's
    socket.socket.connect = _no_network  # type: ignore[method-assign]


def _no_network(*_: Any) -> NoReturn:
    raise OSError("no network in a fuzzer")


def _mapped() -> int:
    """Bytes of address space in use; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


def _one(run: Callable[[], object], limits: Limits, output: IO[bytes], reached: Reached | None) -> Reply:
    finding, refused, lines = None, False, list[Line]()
    signal.setitimer(signal.ITIMER_PROF, limits.seconds * (1 if reached is None else TRACED))
    try:
        if reached is None:
            run()
        else:
            lines = reached.watch(run)
    except FlatlmError:
        refused = True
    except BaseException as error:  # noqa: BLE001  whatever it is, it is the finding
        finding = _finding(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    size = os.fstat(output.fileno()).st_size
    if size > limits.output and finding is None:
        finding = Finding("output", "", f"{size} bytes on stdout and stderr")
    os.ftruncate(output.fileno(), 0)
    os.lseek(output.fileno(), 0, os.SEEK_SET)
    return Reply(finding, refused, lines)


def _finding(error: BaseException) -> Finding:
    stack = [frame for frame in traceback.extract_tb(error.__traceback__) if _ours(frame.filename)]
    where = _place(stack[-1].filename, stack[-1].lineno) if stack else "?"
    kind = "memory" if isinstance(error, MemoryError) else "exception"
    return Finding(kind, f"{where} {type(error).__name__}", f"{str(error)[:300]}")


def _ours(file: str) -> bool:
    return file.startswith(str(ROOT)) and "/tests/fuzzing/worker.py" not in file and "/lines.py" not in file


def _place(file: str, line: object) -> str:
    return f"{Path(file).resolve().relative_to(ROOT)}:{line}"
