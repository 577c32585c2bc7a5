"""How much of a target's code the cases reach: lines within functions, of the cases that are looked at.

Tracing slows Python down some ten times, so only some cases are traced.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType
from typing import Any

Line = tuple[str, int]  # file, number
FIRST, EVERY = 40, 40  # the first cases are traced, then one of so many


def traced(number: int) -> bool:
    """Whether the case of this number is looked at."""
    return number < FIRST or number % EVERY == 0


def lines_of(modules: Iterable[str]) -> set[Line]:
    """All lines of the bodies of functions in `modules`; what runs on import is not a case's doing."""
    found: set[Line] = set()
    for name in modules:
        file = importlib.import_module(name).__file__
        assert file is not None
        with open(file, encoding="utf-8") as source:
            module = compile(source.read(), file, "exec")
        for code in _functions(module):
            found |= {(file, line) for _, _, line in code.co_lines() if line and line != code.co_firstlineno}
    return found


def _functions(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_flags & 0x2:  # CO_NEWLOCALS: a function's, not a class's
                yield inner
            yield from _functions(inner)


class Reached:
    """Collects the lines of `wanted` that run under `watch`."""

    def __init__(self, wanted: set[Line]) -> None:
        self._files = {file for file, _ in wanted}
        self._wanted, self._known = wanted, set[Line]()

    def watch(self, work: Callable[[], Any]) -> list[Line]:
        """Run `work`, whatever it raises; the lines that no earlier work reached."""
        new: set[Line] = set()

        def line(frame: FrameType, event: str, _: Any) -> Any:
            if event == "line":
                new.add((frame.f_code.co_filename, frame.f_lineno))
            return line

        def call(frame: FrameType, event: str, _: Any) -> Any:
            return line if frame.f_code.co_filename in self._files else None

        before = sys.gettrace()
        threading.settrace(call)
        sys.settrace(call)
        try:
            work()
        finally:
            sys.settrace(before)
            threading.settrace(None)
        new = (new & self._wanted) - self._known
        self._known |= new
        return sorted(new)
