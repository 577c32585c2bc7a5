"""The tools of a request as OpenAI's interface has them: what there is, and whether one must be called."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flatlm.runtime.errors import UsageError

CHOICES = ("auto", "none", "required")
MOST = 128  # tools


@dataclass(frozen=True)
class Tooling:
    """Tools ({"type": "function", "function": {name, description, parameters}}) and how they may be called.

    `choice` is one of CHOICES or the name of the tool that must be called. `parallel`: several at once;
    None: where none must be, for a small model that must call goes on calling.
    """

    tools: tuple[Mapping[str, Any], ...]
    choice: str = "auto"
    parallel: bool | None = None

    @property
    def several(self) -> bool:
        """Whether an answer may have more than one call."""
        return self.parallel is True or (self.parallel is None and not self.forced)

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.choice not in ("auto", "none")

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """Of the arguments of the tools that may be called, by name."""
        return {
            function["name"]: function.get("parameters") or {"type": "object", "properties": {}}
            for function in (tool["function"] for tool in self.tools)
            if self.choice in CHOICES or function["name"] == self.choice
        }


def tooling_of(
    tools: Sequence[Any] | None, choice: Any = None, parallel: bool | None = None
) -> Tooling | None:
    """The tools of a request, None where none may be called. Functions without the object around them do.

    Raises UsageError for what is no tool, for two of one name and for a choice that there is not.
    """
    if not tools:
        if choice not in (None, *CHOICES[:2]):
            raise UsageError(f"tool_choice {choice!r:.80} without tools", param="tool_choice")
        return None
    if len(tools) > MOST:
        raise UsageError(f"tools: at most {MOST} are read", param="tools")
    read = tuple(map(_tool, tools))
    names = [tool["function"]["name"] for tool in read]
    if len(set(names)) < len(names):
        raise UsageError(f"tools: two have one name: {', '.join(names):.200}", param="tools")
    chosen = _choice(choice, names)
    return None if chosen == "none" else Tooling(read, chosen, parallel)


def _tool(given: Any) -> Mapping[str, Any]:
    wrapped = isinstance(given, Mapping) and "function" in given
    function = given["function"] if wrapped else given
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise UsageError(f"a tool is a function with a name, not {given!r:.80}", param="tools")
    if any(mark in function["name"] for mark in '"\\\n<>[](){}'):
        raise UsageError(f"a tool cannot be called {function['name']!r:.80}", param="tools")
    parameters = function.get("parameters")
    if not isinstance(parameters, Mapping | None):
        raise UsageError(f"the parameters of {function['name']} must be a JSON schema", param="tools")
    return given if wrapped else {"type": "function", "function": given}


def _choice(choice: Any, names: Sequence[str]) -> str:
    if choice is None or choice in CHOICES:
        return choice or "auto"
    name = choice
    if isinstance(choice, Mapping):
        function = choice.get("function", choice)
        name = function.get("name") if isinstance(function, Mapping) else None
    if name == "any":
        return "required"
    if name not in names:
        raise UsageError(
            f"tool_choice {choice!r:.80}: it is auto, none, required or one of {', '.join(names):.200}",
            param="tool_choice",
        )
    return str(name)


def conversation(messages: Any) -> list[dict[str, Any]]:
    """`messages` as templates read them: at least one, each with what it says; a text is that of a user."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or isinstance(messages, bytes) or not messages:
        raise UsageError(
            f"a text or a list of at least one message is needed, not {messages!r:.80}", param="messages"
        )
    for message in messages:
        silent = isinstance(message, Mapping) and message.get("content") is None
        if silent and message.get("role") in ("user", "system", "developer"):
            what = f"a message of the {message['role']} needs content"
            raise UsageError(f"{what}: {message!r:.80}", param="messages")
    return [readable(message) for message in messages]


def readable(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates read it: its content is text, arguments of calls are objects.

    Arguments that are no JSON stay the text that they are.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError(f"a message must be an object with role and content, not {message!r:.80}")
    result = dict(message)
    content = result.get("content")
    if isinstance(content, list | tuple):
        result["content"] = "\n".join(map(_text_of, content))
    elif content is None:
        result["content"] = ""
    if isinstance(calls := result.get("tool_calls"), list | tuple) and calls:
        result["tool_calls"] = [_call(call) for call in calls]
    else:
        result.pop("tool_calls", None)
    return result


def _text_of(part: Any) -> str:
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise UsageError(f"a part of a message must be text, not {part!r:.80}", param="messages")


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError(f"a call is a function with a name, not {call!r:.80}", param="messages")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return {
        **call,
        "type": "function",
        "function": {**function, "arguments": {} if arguments is None else arguments},
    }
