"""A finding made small: parts of its content are left out for as long as it stays the same finding.

hypothesis shrinks what was changed in a good file; this is for the good file around it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any


def minimise(content: bytes, same: Callable[[bytes], bool], until: float) -> bytes:
    """The smallest content found until then (by time.monotonic) for which `same` holds."""
    if not same(content):
        return content
    shrunk = True
    while shrunk and time.monotonic() < until:
        shrunk = False
        for smaller in _smaller(content):
            if time.monotonic() > until:
                break
            if len(smaller) < len(content) and same(smaller):
                content, shrunk = smaller, True
                break
    return content


def _smaller(content: bytes) -> Iterator[bytes]:
    """Contents with one part less, large parts first."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict | list):
        for smaller in _pruned(value):
            yield json.dumps(smaller).encode()
        return
    size = len(content) // 2
    while size:
        for at in range(0, len(content), size):
            yield content[:at] + content[at + size :]
        size //= 2


def _pruned(value: Any) -> Iterator[Any]:
    """`value` with half of its elements less, then one less, then the same within each element."""
    if isinstance(value, dict):
        items = list(value.items())
        for rest in _without(items):
            yield dict(rest)
        for key, inner in items:
            for smaller in _pruned(inner):
                yield {**value, key: smaller}
    elif isinstance(value, list):
        yield from _without(value)
        for at, inner in enumerate(value):
            for smaller in _pruned(inner):
                yield [*value[:at], smaller, *value[at + 1 :]]


def _without(items: list[Any]) -> Iterator[list[Any]]:
    size = len(items) // 2
    while size:
        for at in range(0, len(items), size):
            yield items[:at] + items[at + size :]
        size //= 2
    if len(items) == 1:
        yield []
