"""Protobuf as trees: a model.onnx is read into nested lists of fields, changed, and written again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from flatlm.runtime.format.protobuf import fields
from tests.fuzzing.mutation import FEW, NUMBERS, TEXTS, Draw

Tree = list[list[Any]]  # of [field's number, an int, bytes or a Tree]

# Fields of ONNX that are messages, with what is in them: of the model graph (nodes, constants, inputs
# and outputs), versions, metadata. Functions are left out: flatlm does not read them.
ENTRY: Mapping[int, Any] = {}
MODEL: Mapping[int, Any] = {7: {1: {5: {}}, 5: {13: ENTRY}, 11: {}, 12: {}}, 8: {}, 14: ENTRY}
FUNCTIONS = 25


def tree_of(message: bytes, kinds: Mapping[int, Any] = MODEL) -> Tree:
    """The fields of a message, those in `kinds` as trees."""
    found: Tree = []
    for number, value in fields(memoryview(message)):
        if kinds is MODEL and number == FUNCTIONS:
            continue
        if isinstance(value, int):
            found.append([number, value])
        else:
            found.append([number, tree_of(bytes(value), kinds[number]) if number in kinds else bytes(value)])
    return found


def written(tree: Tree) -> bytes:
    """The message of a tree. Bytes of four that were a float stay bytes: `FIXED32` says so."""
    parts = []
    for number, value in tree:
        if isinstance(value, int):
            parts.append(_varint(number << 3) + _varint(value % (1 << 64)))
        elif isinstance(value, Fixed32):
            parts.append(_varint(number << 3 | 5) + value)
        else:
            content = written(value) if isinstance(value, list) else value
            parts.append(_varint(number << 3 | 2) + _varint(len(content)) + content)
    return b"".join(parts)


class Fixed32(bytes):
    """Four bytes that are no length-delimited field: an attribute's float."""


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def copied(tree: Tree) -> Tree:
    """Down to the fields, which are replaced whole."""
    return [[number, copied(value) if isinstance(value, list) else value] for number, value in tree]


def message_changes(good: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of the messages with fields replaced, left out, doubled, moved, or given another number."""
    trees = [_floats(tree_of(message)) for message in good]

    @st.composite
    def changed(draw: Draw) -> bytes:
        tree = copied(draw(st.sampled_from(trees)))
        for _ in range(draw(FEW)):
            _change(draw, tree)
        return written(tree)

    return changed()


def _floats(model: Tree) -> Tree:
    """Field 2 of an attribute is a float."""
    for _, graph in (field for field in model if field[0] == 7):
        for _, node in (field for field in graph if field[0] == 1):
            for _, attribute in (field for field in node if field[0] == 5):
                for field in attribute:
                    if field[0] == 2:
                        field[1] = Fixed32(field[1])
    return model


def _change(draw: Draw, tree: Tree) -> None:
    while True:
        at = draw(st.integers(0, len(tree) - 1))
        inner = tree[at][1]
        if not (isinstance(inner, list) and inner and draw(st.integers(0, 3))):
            break
        tree = inner
    what = draw(st.integers(0, 9))
    if what <= 5 and not isinstance(tree[at][1], list):
        tree[at] = [tree[at][0], _value(draw, tree[at][1])]
    elif what == 6 and len(tree) > 1:
        del tree[at]
    elif what == 7:
        tree.insert(draw(st.integers(0, len(tree))), tree[at])
    elif what == 8:
        other = draw(st.integers(0, len(tree) - 1))
        tree[at], tree[other] = [tree[at][0], tree[other][1]], [tree[other][0], tree[at][1]]
    else:
        tree[at] = [draw(st.integers(1, 30)), tree[at][1]]


def _value(draw: Draw, value: Any) -> Any:
    if isinstance(value, int):
        near = draw(st.booleans())
        return value + draw(st.integers(-3, 3)) if near else draw(st.sampled_from(NUMBERS))
    if isinstance(value, Fixed32):
        return Fixed32(draw(st.binary(min_size=4, max_size=4)))
    if len(value) > 40:
        return value[: draw(st.integers(0, len(value)))]
    other = draw(st.sampled_from((value + b"x", value[:-1], *(text.encode() for text in TEXTS))))
    return bytes(other)
