"""What an answer consists of, as it comes: text, thoughts, and calls of tools in fragments."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

ALPHABET = string.ascii_letters + string.digits


class Content(NamedTuple):
    """A piece of what is said to the user."""

    text: str


class Reasoning(NamedTuple):
    """A piece of what the model says to itself."""

    text: str


@dataclass(frozen=True)
class CallDelta:
    """A piece of the call number `index`: its first has an id and the name, those after it arguments."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""  # a fragment of a JSON object's text


Delta = Content | Reasoning | CallDelta


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool. `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """An answer in its parts."""

    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


def folded(deltas: Iterable[Delta]) -> Message:
    """The whole of what came in pieces."""
    content, reasoning, calls = "", "", dict[int, ToolCall]()
    for delta in deltas:
        if isinstance(delta, Content):
            content += delta.text
        elif isinstance(delta, Reasoning):
            reasoning += delta.text
        else:
            known = calls.get(delta.index, ToolCall("", "", ""))
            calls[delta.index] = ToolCall(
                known.id + delta.id, known.name + delta.name, known.arguments + delta.arguments
            )
    return Message(content, reasoning, tuple(calls[index] for index in sorted(calls)))


def new_id() -> str:
    """The id of a call: nine letters and digits, for Mistral's templates take no others."""
    return "".join(secrets.choice(ALPHABET) for _ in range(9))
