"""A progress line on stderr: rewritten in place on a terminal, a few plain lines elsewhere.

A progress function has the signature `(done: int, total: int) -> None`; libraries take one and never print.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

Progress = Callable[[int, int], None]

TERMINAL_SECONDS = 0.1  # between two redraws
USUAL_COLUMNS = 80  # of a terminal that does not say
LOG_SECONDS = 10.0  # between two lines where there is no terminal


class ProgressLine:
    """A `Progress` that draws itself; use as a context manager so that the line is closed on every way out.

    `delay` is the time in seconds before anything is shown: what is done sooner leaves no trace.
    """

    def __init__(self, label: str, unit: str = "", stream: TextIO | None = None, delay: float = 0.5) -> None:
        self._label, self._unit = label, unit
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._started = time.monotonic()
        self._next = self._started + delay
        self._first: tuple[int, float] | None = None  # what was done at the first call, and when
        self._since = (0, self._started)
        self._width = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        first, self._first = self._first, self._first or (done, now)
        self._since = first or (0, self._started)
        if done >= total:  # what is written next starts on a clean line
            self.close()
        if done >= total or now < self._next:
            return
        self._next = now + (TERMINAL_SECONDS if self._terminal else LOG_SECONDS)
        self._draw(self._text(done, total, now))

    def _text(self, done: int, total: int, now: float) -> str:
        seconds = now - self._started
        unit = f" {self._unit}" if self._unit else ""
        share = f" {100 * done / total:3.0f} %" if total else ""
        before, began = self._since  # what was there already, of an export that goes on, tells nothing
        rate = (now - began) / (done - before) if done > before else 0.0
        left = f", {_clock(rate * (total - done))} left" if before < done < total else ""
        return f"{self._label}:{share} {done}/{total}{unit}, {_clock(seconds)}{left}"

    def _draw(self, text: str) -> None:
        if self._terminal:  # \r and spaces, no escape sequences
            text = text[: self._columns() - 1]  # in the last column the next character may begin a new line
            self._stream.write("\r" + text.ljust(min(self._width, self._columns() - 1)))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def _columns(self) -> int:
        """The terminal's width now; it may be turned, or made narrower, while the line stands there."""
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or USUAL_COLUMNS
        except (OSError, ValueError):
            return USUAL_COLUMNS

    def close(self) -> None:
        """Clear the line on a terminal, so that what follows starts in column one."""
        if self._terminal and self._width:
            self._stream.write("\r" + " " * min(self._width, self._columns() - 1) + "\r")
            self._stream.flush()
            self._width = 0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
