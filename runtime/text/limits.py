"""What a chat template may use: steps, time, and the length of each text it makes.

A template can loop for ever, or ask in one expression for a text that no memory holds. So turns of loops and
calls are counted, and the length of a result is asked for before it is made. Between two steps the time is
looked at; what one step does with values of permitted length cannot be stopped, but by Ctrl-C after it.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

MOST_TEXT = 2**23  # characters of a text, elements of a list; the longest contexts hold less
MOST_MADE = 2**30  # characters of all texts that are made on the way
MOST_VALUES = 1_000_000  # in a list of lists that is written
MOST_STEPS = 500_000  # of a published template a conversation of 1,000 messages takes some 10,000
MOST_WIDTH = 10_000  # of an indent or a field of a format
MOST_BITS = 2**16  # of a whole number
MOST_SECONDS = 10.0
STEPS_A_LOOK = 256  # at the clock

PADDED = ("center", "ljust", "rjust", "zfill", "expandtabs")  # methods of str with a width
WIDE = ("center", "indent", "slice", "batch", "wordwrap", "tojson", "round", "truncate")  # filters with one
WRITTEN = (
    "string",
    "pprint",
    "tojson",
    "e",
    "escape",
    "forceescape",
    "urlencode",
    "xmlattr",
)  # of all

_PERCENT_WIDTH = re.compile(r"%[^%a-zA-Z]*(?:[0-9]{5,}|\*)")  # %99999d, %*d
_FIELD_WIDTH = re.compile(r"\{[^{}]*:[^{}]*[0-9]{5,}")  # {:99999}
_FIELD_IN_FIELD = re.compile(r"\{[^{}]*:[^{}]*\{")  # {:{}}


class LimitError(Exception):
    """A template that wants more than it may."""


@dataclass
class Used:
    """Of one rendering."""

    until: float  # by time.monotonic
    steps: int = 0
    made: int = 0


_used: ContextVar[Used] = ContextVar("_used")


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """A rendering, with limits of its own."""
    token = _used.set(Used(time.monotonic() + MOST_SECONDS))
    try:
        yield
    finally:
        _used.reset(token)


def step() -> None:
    """Count one turn of a loop, or one call."""
    used = _used.get(None)
    if used is None:  # jinja2 computes constants while it compiles
        return
    used.steps += 1
    if used.steps > MOST_STEPS:
        raise LimitError(f"it takes more than {MOST_STEPS} steps")
    if used.steps % STEPS_A_LOOK == 0 and time.monotonic() > used.until:
        raise LimitError(f"it takes more than {MOST_SECONDS:.0f} seconds")


def room(length: int) -> None:
    """Raise where a text or list of this length must not be made."""
    used = _used.get(None)
    if used is not None:
        used.made += length
    if length > MOST_TEXT or (used is not None and used.made > MOST_MADE):
        raise LimitError(f"it makes a text or a list of more than {MOST_TEXT} characters or elements")


def counted(items: Iterable[Any]) -> Iterator[Any]:
    """`items` of a loop, each a step."""
    return _counted(iter(items))  # what is no iterable raises here, as in the loop itself


def _counted(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        step()
        yield item


def joined(pieces: Iterable[Any], between: str = "") -> str:
    """`between.join` of `pieces` as text."""
    kept, length = [], 0
    for piece in pieces:
        kept.append(written(piece))
        length += len(kept[-1]) + len(between)
        if length > MOST_TEXT:
            break
    room(length)
    return between.join(kept)


def written(value: Any) -> str:
    """`str(value)`."""
    check_size(value)
    return value if type(value) is str else str(value)


def check_size(value: Any) -> Any:
    """`value`, unless it holds more than can be written: lists within lists grow with each `[x, x]`."""
    if not isinstance(value, list | tuple | set | dict):
        return value
    waiting, size, values = [value], 0, 0
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            item = [*item.keys(), *item.values()]
        if isinstance(item, list | tuple | set):
            waiting.extend(item)
        size += len(item) if isinstance(item, str | list | tuple | set) else 1
        values += 1
        if values > MOST_VALUES:
            raise LimitError(f"it writes a list of more than {MOST_VALUES} values")
    room(size)
    return value


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Raise before `left operator right` makes too much: of + * ** and %."""
    if operator == "%" and isinstance(left, str):
        if _PERCENT_WIDTH.search(left):
            raise LimitError(f"{left!r:.40} % … is too wide")
        check_size(right)
    elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        room(len(left) + len(right))
    elif operator == "*":
        for many, times in ((left, right), (right, left)):
            if hasattr(many, "__len__") and isinstance(times, int):
                room(len(many) * max(times, 0))
    if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MOST_BITS:
            raise LimitError("it computes with numbers that are too large")


def checked_arguments(text: str, method: str, arguments: Sequence[Any]) -> Sequence[Any]:
    """The `arguments` of a method of `text`, once what it will make is not too long."""
    numbers = [number for number in arguments if isinstance(number, int)]
    if method in PADDED:
        tabs = text.count("\t") if method == "expandtabs" else 1
        room(len(text) + tabs * max(numbers, default=8))
    elif method == "join" and arguments:
        pieces = list(arguments[0])
        room(sum(len(piece) + len(text) for piece in pieces if isinstance(piece, str)))
        return [pieces, *arguments[1:]]
    elif method == "replace" and len(arguments) > 1:
        old, new = map(str, arguments[:2])
        room(len(text) + text.count(old) * len(new))
    elif method == "translate" and arguments and isinstance(arguments[0], Mapping):
        longest = max((len(new) for new in arguments[0].values() if isinstance(new, str)), default=1)
        room(len(text) * longest)
    elif method in ("format", "format_map"):
        wide = max(numbers, default=0) > MOST_WIDTH and _FIELD_IN_FIELD.search(text)
        if wide or _FIELD_WIDTH.search(text):
            raise LimitError(f"{text!r:.40}.format(…) is too wide")
        check_size(list(arguments))
    return arguments


def check_filter(name: str, value: Any, arguments: Sequence[Any]) -> None:
    """Raise before the filter `name` makes too much of `value`."""
    if name in WIDE:
        numbers = [number for number in arguments if isinstance(number, int) and not isinstance(number, bool)]
        if max(numbers, default=0) > MOST_WIDTH:
            raise LimitError(f"the filter {name} is asked for more than {MOST_WIDTH}")
    if name == "indent":
        lines = written(value).count("\n") + 1
        room(lines * max((_width(width) for width in arguments), default=4))
    elif name == "replace" and len(arguments) > 1:
        checked_arguments(written(value), "replace", arguments)
    elif name == "format":
        check_operation("%", written(value), tuple(arguments))
    elif name == "sum" and not all(isinstance(start, int | float | str) for start in arguments):
        raise LimitError("the filter sum adds numbers only")
    elif name in WRITTEN:
        check_size(value)


def _width(value: Any) -> int:
    return len(value) if isinstance(value, str) else value if isinstance(value, int) else 0
