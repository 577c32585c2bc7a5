"""OpenAI's Responses: a request becomes messages, an answer items with events of their own."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
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
    content_of,
    sampling_of,
)
from flatlm.runtime.server.failures import NotSupported, openai_body
from flatlm.runtime.server.forms import responses_form, with_form
from flatlm.runtime.server.openai import PING
from flatlm.runtime.server.orders import follow
from flatlm.runtime.server.shop import Call
from flatlm.runtime.server.tickets import Order
from flatlm.runtime.server.wire import event, reply
from flatlm.runtime.settings import Settings


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
    return Chat(messages, tools or None)


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
    """The response that is made, with its one message."""

    model: str
    number: str = field(default_factory=lambda: "resp_" + secrets.token_hex(16))
    item: str = field(default_factory=lambda: "msg_" + secrets.token_hex(16))
    created: float = field(default_factory=lambda: int(time.time()))

    def message(self, text: str, status: str) -> dict[str, Any]:
        part = [self.part(text)] if status != "in_progress" else []
        item = {"type": "message", "id": self.item, "role": "assistant"}
        return {**item, "status": status, "content": part}

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

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

    def ended(self, completion: Completion) -> dict[str, Any]:
        status = "incomplete" if completion.finish_reason == "length" else "completed"
        return self.whole(status, [self.message(completion.text, status)], completion)


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
    one = await call.shop.on_text(lambda: asked(chat_ids(chat, llm), options, llm, False))
    order, made = call.order(host, [one]), Reply(host.name)
    if body.get("stream", bool, False):
        return call.streamed(_events(made, order), order)
    (completion,) = await call.completed(order)
    return reply(made.ended(completion))


async def _events(made: Reply, order: Order) -> AsyncIterator[bytes]:
    numbers = count()

    def named(kind: str, **more: Any) -> bytes:
        return event({"type": kind, "sequence_number": next(numbers), **more}, kind)

    place = {"item_id": made.item, "output_index": 0, "content_index": 0}
    yield named("response.created", response=made.whole("in_progress", []))
    yield named("response.in_progress", response=made.whole("in_progress", []))
    yield named("response.output_item.added", output_index=0, item=made.message("", "in_progress"))
    yield named("response.content_part.added", **place, part=made.part(""))
    try:
        async for news in follow(order):
            for text, _ in news.pieces if news is not None else ():
                yield named("response.output_text.delta", **place, delta=text, logprobs=[])
            if news is None:
                yield PING
    except Exception as error:  # noqa: BLE001  told, not swallowed
        failed = {**made.whole("failed", []), "error": openai_body(error)["error"]}
        yield named("response.failed", response=failed)
        return
    completion = order.tickets[0].completion
    whole = made.ended(completion)
    text, (item,) = completion.text, whole["output"]
    yield named("response.output_text.done", **place, text=text, logprobs=[])
    yield named("response.content_part.done", **place, part=made.part(text))
    yield named("response.output_item.done", output_index=0, item=item)
    yield named(f"response.{whole['status']}", response=whole)


async def input_tokens(call: Call) -> Response:
    body = await call.body()
    llm = (await call.model(body)).opened
    chat = read_chat(body)
    ids = await call.shop.on_text(lambda: chat_ids(chat, llm))
    return reply({"object": "response.input_tokens", "input_tokens": len(ids)})
