"""Runs one program under limits. Started by programs.py as a process of its own, never imported.

stdin has the program and its limits as JSON; the argument is the number of the pipe that takes the verdict.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

REFUSED = ("os.", "subprocess.", "socket.", "shutil.", "pty.")  # audit events: processes, network, files
ALLOWED = ("os.listdir", "os.scandir", "os.putenv", "os.unsetenv")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    verdict = int(sys.argv[1])
    request = json.load(sys.stdin)
    sys.path.pop(0)  # this file's folder
    limit(**request["limits"])
    guard(os.path.realpath(os.getcwd()))
    try:
        exec(compile(request["program"], "program.py", "exec"), {"__name__": "program"})
        result = "passed"
    except BaseException as error:  # noqa: BLE001  SystemExit too: who leaves early has not passed
        result = f"failed: {type(error).__name__}"
    os.write(verdict, result.encode() + b"\n")


def limit(cpu_seconds: int, wall_seconds: float, memory: int, file_size: int, files: int) -> None:
    """Set the limits of this process; the wall clock is the parent's."""
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1),  # the soft one's signal says what it was
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, file_size, file_size),
        (resource.RLIMIT_NOFILE, files, files),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NPROC, 1, 1),  # no new process or thread; root is exempt, hence also the guard
    ):
        highest = resource.getrlimit(kind)[1]
        if highest != resource.RLIM_INFINITY:
            soft, hard = min(soft, highest), min(hard, highest)
        resource.setrlimit(kind, (soft, hard))


def guard(folder: str) -> None:
    """Refuse, by an audit hook that cannot be removed, what a solution to a puzzle has no need of."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            written = isinstance(path, str | bytes) and flags & WRITING
            if written and not os.path.realpath(os.fsdecode(path)).startswith(folder + os.sep):
                raise PermissionError(f"writing to {path!r}")
        elif event.startswith(REFUSED) and event not in ALLOWED:
            raise PermissionError(event)

    sys.addaudithook(refuse)


if __name__ == "__main__":
    main()
