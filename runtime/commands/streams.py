"""The standard streams as they really are: closed, full, not UTF-8, or a terminal that obeys escapes.

stdout carries the result: what keeps it from being written is an error. stderr carries talk: losing that is
none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import stat
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from flatlm.runtime.errors import ResourceError

# Control characters but for newline and tab; dim and the foreground colours of answers are left alone.
_CONTROL = re.compile(r"\x1b\[(?:0|2|3[1-7])m|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` without power over a terminal: control characters as \\x1b is written here."""
    return _CONTROL.sub(lambda found: found[0] if len(found[0]) > 1 else f"\\x{ord(found[0]):02x}", text)


class Talk:
    """stderr, whose failures are no failures of the work. None is one that is closed."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is not None:
            with self._lost(self._stream):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with self._lost(self._stream):
                self._stream.flush()

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    @contextlib.contextmanager
    def _lost(self, stream: TextIO) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            silence(stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Result:
    """stdout: where it cannot be written that is a ResourceError; on a terminal nothing printed steers it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()

    def write(self, text: str) -> int:
        with self._told():
            self._stream.write(printable(text) if self._terminal else text)
        return len(text)

    def flush(self) -> None:
        with self._told():
            self._stream.flush()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # the reader left, as `head` does: not worth a word
            silence(self._stream)
            raise
        except OSError as error:
            silence(self._stream)
            raise ResourceError(f"standard output cannot be written: {error.strerror or error}") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """sys.stdout and sys.stderr such that any text can be printed; as they were afterwards.

    sys.stdout stays None where it is closed.
    """
    before = sys.stdout, sys.stderr
    _fill_closed()
    sys.stderr = cast(TextIO, Talk(sys.stderr))
    if sys.stdout is not None:
        _take_every_character(sys.stdout)
        sys.stdout = cast(TextIO, Result(sys.stdout))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def silence(stream: TextIO) -> None:
    """Let what waits in `stream` and what is still to come go nowhere: Python would write it at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def accept_foreign_bytes() -> None:
    """Have stdin pass bytes that are no text of its encoding on, for `as_text`."""
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]


def as_text(line: str) -> str:
    """A line of such a stdin: bytes as UTF-8 where they are that, as U+FFFD where not."""
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if _escaped(line) else line


def piped(patience: float = 1.0) -> str:
    """What a pipe or a file gives to stdin; empty for a terminal, the null device, or where it is closed.

    After `patience` seconds in which a pipe gives nothing, what is waited for is said.
    """
    try:
        number = sys.stdin.fileno()
        mode = os.fstat(number).st_mode
    except (AttributeError, OSError, ValueError):
        return ""
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
        return ""
    if stat.S_ISFIFO(mode) and not select.select([number], [], [], patience)[0]:
        print(
            "flatlm: reading standard input, which is a pipe (</dev/null: nothing to read)", file=sys.stderr
        )
    accept_foreign_bytes()
    return as_text(sys.stdin.read())


def _escaped(line: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in line)


def _take_every_character(stream: TextIO) -> None:
    """What the encoding lacks is written as \\u65e5, as on stderr, unless the user chose otherwise."""
    if stream.errors in ("strict", "surrogateescape"):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]


def _fill_closed() -> None:
    """Open 0, 1 and 2 where they are closed: the next file that is opened would take that number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
