"""Runs one program under limits. Started by programs.py as a process of its own, never imported.

stdin has the program, its limits and a word that the verdict must repeat, as JSON; the argument is the number
of the pipe that takes the verdict.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from types import FrameType
from typing import Any

REFUSED = (  # audit events: processes, threads, network, files, memory, limits, and ways to this guard
    "os.", "subprocess.", "socket.", "shutil.", "pty.", "ctypes.", "sqlite3.", "resource.", "signal.",
    "syslog.", "_thread.", "gc.", "sys.settrace", "sys.setprofile", "sys.monitoring",
)  # fmt: skip
ALLOWED = ("os.listdir", "os.scandir", "os.putenv", "os.unsetenv")
NOT_IMPORTED = (  # what starts processes or writes files without an event, or is taken out below
    "_posixsubprocess", "readline", "_dbm", "_gdbm", "_testcapi", "posix", "_signal",
)  # fmt: skip
DROPPED = (  # functions without an event
    "mknod", "mkfifo", "pidfd_open", "pidfd_send_signal", "setpriority", "sched_setaffinity",
    "sched_setparam", "sched_setscheduler", "setns", "unshare",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
VERDICT = "flatlm.verdict"
LONGEST_NAME = 100  # characters of an exception's


def main() -> None:
    request = json.load(sys.stdin)
    sys.path.pop(0)  # this file's folder
    limit(**request["limits"])
    drop()
    folders = tuple({os.path.realpath(os.getcwd()) + "/", os.environ["TMPDIR"] + "/"})
    guard(folders, sys._getframe(), int(sys.argv[1]), request.pop("nonce"))
    audit = sys.audit
    try:
        exec(compile(request["program"], "program.py", "exec"), {"__name__": "program"})
        result = "passed"
    except BaseException as error:  # noqa: BLE001  SystemExit too: who leaves early has not passed
        result = f"failed: {type(error).__name__:.{LONGEST_NAME}}"
    audit(VERDICT, result)


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


def drop() -> None:
    """Take what no hook hears of out of the modules that have it."""
    for module in (os, sys.modules["posix"], signal, sys.modules["_signal"]):
        for name in DROPPED:
            function = vars(module).pop(name, None)
            for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
                known.discard(function)


def guard(folders: tuple[str, ...], main_frame: FrameType, pipe: int, nonce: str) -> None:
    """Refuse, by an audit hook, what a solution to a puzzle has no need of; and write `main`'s verdict.

    All that the hook needs is in its defaults: modules and builtins can be changed by the program, and of a
    function that nothing but the interpreter knows the defaults cannot.
    """

    def hear(
        event: str,
        arguments: tuple[Any, ...],
        *,
        refused: tuple[str, ...] = REFUSED,
        allowed: tuple[str, ...] = ALLOWED,
        not_imported: tuple[str, ...] = NOT_IMPORTED,
        folders: tuple[str, ...] = folders,
        writing: int = WRITING,
        verdict: str = VERDICT,
        main_frame: FrameType = main_frame,
        pipe: int = pipe,
        nonce: str = nonce,
        frame: Any = sys._getframe,
        write: Any = os.write,
        is_a: Any = isinstance,
        text: Any = str,
        octets: Any = bytes,
        number: Any = int,
        error: Any = PermissionError,
    ) -> None:
        if event == "open":
            path, mode, flags = arguments
            if is_a(path, number):
                return
            if not is_a(path, (text, octets)):
                raise error("opening what is no text")
            # the methods of str itself, whatever class the path is of
            path = text.__str__(path) if is_a(path, text) else octets.decode(path, "utf-8", "surrogateescape")
            parts = path.split("/")
            outside = ".." in parts or (path.startswith("/") and not path.startswith(folders))
            # os.open, which has no mode, opens folders too, and in these anything can be opened by dir_fd
            if outside and (mode is None or flags & writing):
                raise error(f"writing to {path!r}")
            if "proc" in parts or ("dev" in parts and ".." in parts):
                raise error(f"reading {path!r}")
        elif event == "import":
            if arguments[0] in not_imported:
                raise error(f"importing {arguments[0]}")
        elif event == verdict:
            if frame(1) is main_frame:
                write(pipe, f"{nonce} {arguments[0]}\n".encode())
        elif event == "ctypes.dlopen" and arguments[0] is None:
            pass  # what `import ctypes` does, as numpy does; nothing can be called in it
        elif event.startswith(refused) and event not in allowed:
            raise error(event)

    sys.addaudithook(hear)


if __name__ == "__main__":
    main()
