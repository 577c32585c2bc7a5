"""Changes of good files: of a JSON tree, of bytes, of a file seen as a row of fields. hypothesis draws them.

Few changes a case: a file that is wrong in one place gets past the checks of all others.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 1000, 4096, 65535, 65536, -128),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63)),
)
FLOATS = (0.0, -0.0, 0.5, -1.0, 1e-45, 1e-300, 1e38, 1e308, float("inf"), float("-inf"), float("nan"), 20.0)
TEXTS = (
    *(
        "",
        "x",
        "0",
        "-1",
        "1e5",
        "a b",
        "\0",
        "..",
        "../x",
        "/",
        "é",
        "🙂",
        "\ufeff",
        "\x1b[2J",
        "null",
        "true",
    ),
    *("x" * 5000, "%s", "{}", "{0}", "__class__", "default", "llama3", "yarn", "linear", "Ġ", "<unk>"),
)
BYTES = st.binary(min_size=1, max_size=4)
FEW = st.integers(1, 3)
LEAF = st.one_of(
    st.sampled_from((None, True, False)),
    st.sampled_from(NUMBERS),
    st.sampled_from(FLOATS),
    st.sampled_from(TEXTS),
    st.integers(),
    st.text(max_size=6),
)
VALUE = st.one_of(
    LEAF,
    LEAF,
    st.lists(LEAF, max_size=3),
    st.dictionaries(st.sampled_from(TEXTS), LEAF, max_size=2),
    st.lists(st.lists(LEAF, max_size=2), max_size=2),
)


def words(text: str) -> tuple[str, ...]:
    """What stands between spaces."""
    return tuple(text.split())


def json_changes(good: Sequence[Any]) -> st.SearchStrategy[Any]:
    """One of the values with some of what is in it replaced, left out, doubled or renamed."""
    texts = [json.dumps(value) for value in good]
    keys = sorted({key for value in good for key in _keys(value)} | {"x", "type"})

    @st.composite
    def changed(draw: Draw) -> Any:
        value = json.loads(draw(st.sampled_from(texts)))
        for _ in range(draw(FEW)):
            value = _change(draw, value, keys)
        return value

    return changed()


def json_bytes(good: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """The same as text, now and then with bytes of the text changed, too."""
    texts = [json.dumps(value, ensure_ascii=False).encode() for value in good]
    trees = json_changes(good).map(lambda value: json.dumps(value).encode())
    return st.one_of(trees, trees, trees, byte_changes(texts), st.sampled_from(SHAPES))


SHAPES = (  # of JSON that is none, or no object
    *(b"", b"{", b"null", b"[]", b'""', b"0", b"\xff\xfe", b"[" * 3000, b'{"a":' * 3000, b"9" * 5000),
    *(b'{"a": 1, "a": 2}', b'{"\\ud800": 1}', b"NaN", b"-Infinity", b"\xef\xbb\xbf{}"),
)


def _keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(list(value)[:40]).union(*map(_keys, list(value.values())[:40]))
    return set().union(*map(_keys, value[:10])) if isinstance(value, list) else set()


def _change(draw: Draw, value: Any, keys: Sequence[str]) -> Any:
    """`value` with one place in it changed; changed in place where it is a list or an object."""
    place, at = _place(draw, value)
    if place is None:
        return draw(VALUE)
    what = draw(st.integers(0, 6))
    if what <= 3:
        place[at] = _near(draw, place[at])
    elif what == 4:
        del place[at]
    elif isinstance(place, dict):
        place[draw(st.sampled_from(keys))] = place[at] if what == 5 else draw(VALUE)
    else:
        place.insert(draw(st.integers(0, len(place))), place[at] if what == 5 else draw(VALUE))
    return value


def _place(draw: Draw, value: Any) -> tuple[Any, Any]:
    """A list or an object within `value` and a place in it: a walk that may end at each step."""
    place: Any = None
    at: Any = None
    while isinstance(value, dict | list) and value and (place is None or draw(st.integers(0, 3))):
        place = value
        number = draw(st.integers(0, len(value) - 1))
        at = list(value)[number] if isinstance(value, dict) else number
        value = value[at]
    return place, at


def _near(draw: Draw, value: Any) -> Any:
    """Something in the place of `value`, as often as not of its kind."""
    kind = draw(st.integers(0, 2))
    if kind == 0 and type(value) is int:
        return draw(st.sampled_from((value + 1, value - 1, 2 * value, -value, value // 2)))
    if kind == 0 and isinstance(value, float):
        return draw(st.sampled_from(FLOATS))
    if kind == 0 and isinstance(value, str):
        return draw(st.sampled_from((value + "x", value[:-1], value * 2, *TEXTS)))
    return draw(VALUE)


def byte_changes(good: Sequence[bytes], within: int = 0) -> st.SearchStrategy[bytes]:
    """One of the contents with bytes written over, put in, left out, doubled, or its end cut off.

    `within`: the first so many bytes, where the structure is, are changed three times out of four.
    """

    @st.composite
    def changed(draw: Draw) -> bytes:
        content = draw(st.sampled_from(good))
        for _ in range(draw(FEW)):
            end = len(content)
            if within and draw(st.integers(0, 3)):
                end = min(end, within)
            at = draw(st.integers(0, end))
            content = _splice(draw, content, at)
        return bytes(content)

    return changed()


def _splice(draw: Draw, content: bytes, at: int) -> bytes:
    what = draw(st.integers(0, 6))
    if what <= 1:
        new = draw(BYTES)
        return content[:at] + new + content[at + len(new) :]
    if what <= 3:
        new = number_bytes(draw)
        return content[:at] + new + content[at + len(new) :]
    size = draw(st.integers(1, 64))
    if what == 4:
        return content[:at] + content[at + size :]
    if what == 5:
        return content[: at + size] + content[at:]
    return content[:at]


def number_bytes(draw: Draw, sizes: Sequence[int] = (1, 2, 4, 8)) -> bytes:
    """A telling number in one of these sizes, little-endian."""
    size = draw(st.sampled_from(sizes))
    number: int = draw(st.sampled_from(NUMBERS))
    return (number % (1 << 8 * size)).to_bytes(size, "little")


def field_changes(good: Sequence[Sequence[bytes]]) -> st.SearchStrategy[bytes]:
    """One of the files, given as its fields in order, some of them replaced, left out, doubled, swapped."""

    @st.composite
    def changed(draw: Draw) -> bytes:
        fields = list(draw(st.sampled_from(good)))
        for _ in range(draw(FEW)):
            at = draw(st.integers(0, len(fields) - 1))
            what = draw(st.integers(0, 9))
            if what <= 5:
                fields[at] = _field(draw, fields[at])
            elif what == 6 and len(fields) > 1:
                del fields[at]
            elif what == 7:
                fields.insert(at, fields[at])
            elif what == 8:
                other = draw(st.integers(0, len(fields) - 1))
                fields[at], fields[other] = fields[other], fields[at]
            else:
                fields = fields[: at + 1]
        return b"".join(fields)

    return changed()


def _field(draw: Draw, field: bytes) -> bytes:
    """Other bytes in a field's place: a number of its size, near its own or not, or bytes, or a text."""
    if len(field) in (1, 2, 4, 8):
        if draw(st.booleans()):
            number = int.from_bytes(field, "little") + draw(st.integers(-4, 4))
            return (number % (1 << 8 * len(field))).to_bytes(len(field), "little")
        if len(field) in (4, 8) and not draw(st.integers(0, 3)):
            with_float = "<f" if len(field) == 4 else "<d"
            value = draw(st.sampled_from(FLOATS))
            return struct.pack(with_float, value if abs(value) < 1e39 or value != value else float("inf"))
        return number_bytes(draw, (len(field),))
    if len(field) < 32 and draw(st.booleans()):
        return bytes(draw(st.binary(min_size=len(field), max_size=len(field))))
    return str(draw(st.sampled_from(TEXTS))).encode()
