"""Ctrl-C at any line of a function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupted_after(lines: int, *functions: Callable[..., Any]) -> Iterator[list[bool]]:
    """Ctrl-C where that many lines of `functions` were run; yields a list, not empty if it came to that."""
    codes, came = {function.__code__ for function in functions}, list[bool]()

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal lines
        lines -= event == "line" and frame.f_code in codes
        if lines < 0 and not came:
            came.append(True)
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield came
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
