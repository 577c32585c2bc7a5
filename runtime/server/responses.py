"""OpenAI's Responses: a request becomes messages, an answer items with events of their own."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from starlette.responses import Response

from flatlm.runtime.errors import UsageError
from flatlm.runtime.generation.answer import Completion
from flatlm.runtime.server.asks import (
    MOST_MESSAGES,
    Chat,
    arguments_of,
    asked,
    chat_ids,
    chat_prompt,
    content_of,
    sampling_of,
)
from flatlm.runtime.server.failures import NotSupported, openai_body
from flatlm.runtime.server.forms import responses_form, with_form
from flatlm.runtime.server.openai import PING
from flatlm.runtime.server.orders import follow, part_of
from flatlm.runtime.server.shop import Call
from flatlm.runtime.server.tickets import Order
from flatlm.runtime.server.wire import event, reply
from flatlm.runtime.settings import Settings
from flatlm.runtime.text.tools.deltas import CallDelta, Content, Delta, Message, Reasoning
from flatlm.runtime.text.tools.request import tooling_of


def read_chat(body: Settings) -> Chat:
    """`instructions`, `input` and `tools` as templates know them."""
    messages = []
    if instructions := body.get("instructions", str):
        messages.append({"role": "system", "content": instructions})
    if isinstance(body.values.get("input"), list):
        messages += [_message(one) for one in body.tables("input")]
    else:
        messages.append({"role": "user", "content": body.need("input", str)})
    if not 1 <= len(messages) <= MOST_MESSAGES:
        raise UsageError(f"input: 1 to {MOST_MESSAGES} items are read", param="input")
    tools = [_tool(one) for one in body.tables("tools")]
    tooling = tooling_of(tools, body.values.get("tool_choice"), body.get("parallel_tool_calls", bool))
    return Chat(messages, tooling)


def _message(item: Settings) -> dict[str, Any]:
    kind = item.get("type", str, "message")
    if kind == "message":
        role = item.need("role", str)
        return {"role": "system" if role == "developer" else role, "content": content_of(item, "content")}
    if kind == "function_call_output":
        number = item.get("call_id", str, "")
        return {"role": "tool", "tool_call_id": number, "content": content_of(item, "output")}
    if kind == "function_call":
        function = {"name": item.need("name", str), "arguments": arguments_of(item)}
        call = {"id": item.get("call_id", str, ""), "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "reasoning":
        return {"role": "assistant", "content": "", "reasoning_content": ""}
    raise NotSupported(f"an item of type {kind!r} is not read here", param="input")


def _tool(given: Settings) -> dict[str, Any]:
    if given.get("type", str, "function") != "function":
        raise NotSupported(f"tools of type {given['type']!r} are not had here", param="tools")
    keys = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {key: given[key] for key in keys if key in given}}


@dataclass(frozen=True)
class Reply:
    """The response that is made."""

    model: str
    number: str = field(default_factory=lambda: "resp_" + secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, status: str, output: list[Any], completion: Completion | None = None) -> dict[str, Any]:
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.number,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": incomplete,
            "model": self.model,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": None if completion is None else usage_of(completion),
        }

    def ended(self, completion: Completion, items: Sequence[Item]) -> dict[str, Any]:
        status = "incomplete" if completion.finish_reason == "length" else "completed"
        return self.whole(status, [item.shown(status) for item in items], completion)


@dataclass
class Item:
    """One item of the output as it grows: the message, thoughts, or a call."""

    kind: type[Delta]
    text: str = ""
    call: str = ""  # its id
    name: str = ""
    number: str = field(default_factory=lambda: secrets.token_hex(16))

    def take(self, delta: Delta) -> str:
        """Add what came, and return it."""
        text = delta.arguments if isinstance(delta, CallDelta) else delta.text
        self.text += text
        return text

    @property
    def id(self) -> str:
        return {Content: "msg_", Reasoning: "rs_", CallDelta: "fc_"}[self.kind] + self.number

    def shown(self, status: str) -> dict[str, Any]:
        if self.kind is Content:
            content = [] if status == "in_progress" else [part(self.text)]
            item = {"type": "message", "id": self.id, "role": "assistant"}
            return {**item, "status": status, "content": content}
        if self.kind is Reasoning:
            content = [{"type": "reasoning_text", "text": self.text}]
            return {"type": "reasoning", "id": self.id, "summary": [], "content": content, "status": status}
        call = {"type": "function_call", "id": self.id, "call_id": self.call, "name": self.name}
        return {**call, "arguments": self.text, "status": status}


def part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def begun(delta: Delta) -> Item:
    """The item that `delta` is the first of."""
    if isinstance(delta, CallDelta):
        return Item(CallDelta, call=f"call_{delta.id}", name=delta.name)
    return Item(type(delta))


def items_of(message: Message) -> list[Item]:
    """The items of a whole answer."""
    items = [Item(Reasoning, message.reasoning)] if message.reasoning else []
    if message.content or not message.tool_calls:
        items.append(Item(Content, message.content))
    return items + [Item(CallDelta, one.arguments, f"call_{one.id}", one.name) for one in message.tool_calls]


def usage_of(completion: Completion) -> dict[str, Any]:
    timings = completion.timings
    return {
        "input_tokens": timings.prompt_tokens,
        "input_tokens_details": {"cached_tokens": timings.reused_tokens},
        "output_tokens": timings.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": timings.prompt_tokens + timings.generated_tokens,
    }


async def responses(call: Call) -> Response:
    body = await call.body()
    if body.get("previous_response_id", str):
        raise NotSupported("previous_response_id: responses are not kept here; send the whole conversation")
    host = await call.model(body)
    llm, options = host.opened, sampling_of(body, host.opening.sampling)
    options = with_form(options, responses_form(body))
    chat = read_chat(body)
    one = await call.shop.on_text(lambda: asked(chat_prompt(chat, options, llm), llm))
    order, made = call.order(host, [one]), Reply(host.name)
    if body.get("stream", bool, False):
        return call.streamed(_events(made, order), order)
    (completion,) = await call.completed(order)
    return reply(made.ended(completion, items_of(completion.message)))


class Events:
    """The events of a stream, numbered; one item is open at a time."""

    def __init__(self) -> None:
        self._numbers, self._part = count(), object()
        self.items: list[Item] = []

    def named(self, kind: str, **more: Any) -> bytes:
        kind = f"response.{kind}"
        return event({"type": kind, "sequence_number": next(self._numbers), **more}, kind)

    def of(self, delta: Delta) -> list[bytes]:
        """What is sent for a piece of the answer."""
        found = []
        if part_of(delta) != self._part:
            found += self.end()
            self._part = part_of(delta)
            self.items.append(begun(delta))
            found += self._begin()
        item = self.items[-1]
        text = item.take(delta)
        if item.kind is Content:
            found.append(self.named("output_text.delta", **self._place, delta=text, logprobs=[]))
        elif item.kind is Reasoning:
            found.append(self.named("reasoning_text.delta", **self._place, delta=text))
        else:
            place = {"item_id": item.id, "output_index": len(self.items) - 1}
            found.append(self.named("function_call_arguments.delta", **place, delta=text))
        return found

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1].id, "output_index": len(self.items) - 1, "content_index": 0}

    def _begin(self) -> list[bytes]:
        item = self.items[-1]
        added = {"output_index": len(self.items) - 1, "item": item.shown("in_progress")}
        found = [self.named("output_item.added", **added)]
        if item.kind is Content:
            found.append(self.named("content_part.added", **self._place, part=part("")))
        return found

    def end(self) -> list[bytes]:
        """The open item is whole."""
        if not self.items:
            return []
        item, place = self.items[-1], self._place
        done = {"output_index": place["output_index"], "item": item.shown("completed")}
        found = []
        if item.kind is Content:
            found.append(self.named("output_text.done", **place, text=item.text, logprobs=[]))
            found.append(self.named("content_part.done", **place, part=part(item.text)))
        elif item.kind is Reasoning:
            found.append(self.named("reasoning_text.done", **place, text=item.text))
        else:
            call = {"item_id": item.id, "output_index": place["output_index"], "name": item.name}
            found.append(self.named("function_call_arguments.done", **call, arguments=item.text))
        return [*found, self.named("output_item.done", **done)]


async def _events(made: Reply, order: Order) -> AsyncIterator[bytes]:
    events = Events()
    yield events.named("created", response=made.whole("in_progress", []))
    yield events.named("in_progress", response=made.whole("in_progress", []))
    try:
        async for news in follow(order):
            if news is None:
                yield PING
                continue
            for delta in (said.delta for said in news.said):
                for one in events.of(delta):
                    yield one
        for one in events.end() if events.items else [*events.of(Content("")), *events.end()]:
            yield one
    except Exception as error:  # noqa: BLE001  told, not swallowed
        failed = {**made.whole("failed", []), "error": openai_body(error)["error"]}
        yield events.named("failed", response=failed)
        return
    whole = made.ended(order.tickets[0].completion, events.items)
    yield events.named(whole["status"], response=whole)


async def input_tokens(call: Call) -> Response:
    body = await call.body()
    llm = (await call.model(body)).opened
    chat = read_chat(body)
    ids = await call.shop.on_text(lambda: chat_ids(chat, llm))
    return reply({"object": "response.input_tokens", "input_tokens": len(ids)})
