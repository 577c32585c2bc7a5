"""Anthropic's messages: blocks instead of texts, and events with names. Its SDK drops events without one."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from flatlm.runtime.errors import UsageError
from flatlm.runtime.generation.answer import Completion
from flatlm.runtime.server.asks import MOST_MESSAGES, Chat, asked, chat_ids, chat_prompt, sampling_of
from flatlm.runtime.server.failures import NotSupported, anthropic_body
from flatlm.runtime.server.orders import follow, part_of
from flatlm.runtime.server.shop import Call
from flatlm.runtime.server.tickets import Order
from flatlm.runtime.server.wire import event, reply
from flatlm.runtime.settings import Settings
from flatlm.runtime.text.tools.deltas import Content, Delta, Message, Reasoning
from flatlm.runtime.text.tools.request import Tooling, tooling_of

TEXT = ("text", "input_text", "output_text")


def read_chat(body: Settings) -> Chat:
    """System, messages and tools as templates know them."""
    given = body.tables("messages")
    if not 1 <= len(given) <= MOST_MESSAGES:
        raise UsageError(f"messages: 1 to {MOST_MESSAGES} are read", param="messages")
    system = _text(body, "system")
    messages = [{"role": "system", "content": system}] if system else []
    for one in given:
        messages += _messages(one)
    last = messages[-1]
    continued = last["role"] == "assistant" and "tool_calls" not in last
    return Chat(messages, _tooling(body), _variables(body), continued=continued)


def _tooling(body: Settings) -> Tooling | None:
    choice = body.table("tool_choice")
    kind = choice.get("type", str, "auto")
    one_call = choice.get("disable_parallel_tool_use", bool)
    tools = [_tool(one) for one in body.tables("tools")]
    if not tools:
        return None
    named = choice.need("name", str) if kind == "tool" else {"any": "required"}.get(kind, kind)
    return tooling_of(tools, named, None if one_call is None else not one_call)


def _variables(body: Settings) -> Mapping[str, Any]:
    thinking = body.table("thinking").get("type", str)
    return {} if thinking is None else {"enable_thinking": thinking == "enabled"}


def _messages(given: Settings) -> list[dict[str, Any]]:
    """A message; results of tools are messages of their own before what else it says."""
    role = given.need("role", str)
    if not isinstance(given.values.get("content"), list):
        return [{"role": role, "content": given.get("content", str, "")}]
    before, texts, calls, thoughts = list[dict[str, Any]](), list[str](), list[dict[str, Any]](), list[str]()
    for block in given.tables("content"):
        kind = block.get("type", str, "text")
        if kind in TEXT:
            texts.append(block.need("text", str))
        elif kind == "tool_result":
            number = block.get("tool_use_id", str, "")
            before.append({"role": "tool", "tool_call_id": number, "content": _text(block, "content")})
        elif kind == "tool_use":
            function = {"name": block.need("name", str), "arguments": dict(block.table("input").values)}
            calls.append({"id": block.get("id", str, ""), "type": "function", "function": function})
        elif kind == "thinking":
            thoughts.append(block.get("thinking", str, ""))
        elif kind != "redacted_thinking":
            raise NotSupported(f"a block of type {kind!r}: this model reads text only", param="messages")
    message: dict[str, Any] = {"role": role, "content": "\n".join(texts)}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return [*before, message] if texts or calls or not before else before


def _text(given: Settings, key: str) -> str:
    """A text, or the texts of blocks."""
    if not isinstance(given.values.get(key), list):
        return given.get(key, str, "")
    blocks = given.tables(key)
    if other := [kind for block in blocks if (kind := block.get("type", str, "text")) not in TEXT]:
        raise NotSupported(f"a block of type {other[0]!r}: this model reads text only", param=key)
    return "\n".join(block.need("text", str) for block in blocks)


def _tool(given: Settings) -> dict[str, Any]:
    schema = dict(given.table("input_schema").values)
    function = {"name": given.need("name", str), "description": given.get("description", str, "")}
    return {"type": "function", "function": {**function, "parameters": schema}}


@dataclass(frozen=True)
class Reply:
    """The message that is made."""

    model: str
    number: str = field(default_factory=lambda: "msg_" + secrets.token_hex(12))

    def head(self, order: Order, content: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        message = {"id": self.number, "type": "message", "role": "assistant", "model": self.model}
        used = {"input_tokens": order.prompt_tokens(0), "output_tokens": 0, "cache_read_input_tokens": 0}
        return {
            **message,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": used,
            **more,
        }

    def ended(self, order: Order) -> dict[str, Any]:
        """Why it ended."""
        text, completion = order.stopped_by(0), order.tickets[0].completion
        reason = "end_turn" if text is None else "stop_sequence"
        if completion.finish_reason == "length":
            reason = "max_tokens"
        elif completion.tool_calls:
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": text}


def usage_of(completion: Completion) -> dict[str, int]:
    timings = completion.timings
    return {
        "input_tokens": timings.prompt_tokens - timings.reused_tokens,
        "cache_read_input_tokens": timings.reused_tokens,
        "output_tokens": timings.generated_tokens,
    }


async def messages(call: Call) -> Response:
    body = await call.body()
    host = await call.model(body)
    body.need("max_tokens", int, low=1)
    llm, options = host.opened, sampling_of(renamed(body), host.opening.sampling)
    chat = read_chat(body)
    one = await call.shop.on_text(lambda: asked(chat_prompt(chat, options, llm), llm))
    order, made = call.order(host, [one]), Reply(host.name)
    if body.get("stream", bool, False):
        return call.streamed(_events(made, order), order)
    (completion,) = await call.completed(order)
    ended = {**made.ended(order), "usage": usage_of(completion)}
    return reply(made.head(order, blocks_of(completion.message), **ended))


def renamed(body: Settings) -> Settings:
    """With stop texts under the name that all others have for them."""
    return Settings({**body.values, "stop": body.values.get("stop_sequences")}, body.place, body.error)


def blocks_of(message: Message) -> list[dict[str, Any]]:
    """A whole answer."""
    blocks: list[dict[str, Any]] = []
    if message.reasoning:
        blocks.append({"type": "thinking", "thinking": message.reasoning, "signature": ""})
    if message.content or not message.tool_calls:
        blocks.append({"type": "text", "text": message.content})
    for one in message.tool_calls:
        given = json.loads(one.arguments or "{}")
        blocks.append({"type": "tool_use", "id": f"toolu_{one.id}", "name": one.name, "input": given})
    return blocks


def begun(delta: Delta) -> dict[str, Any]:
    """The block that `delta` begins."""
    if isinstance(delta, Content):
        return {"type": "text", "text": ""}
    if isinstance(delta, Reasoning):
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "tool_use", "id": f"toolu_{delta.id}", "name": delta.name, "input": {}}


def grown(delta: Delta) -> dict[str, Any]:
    """What `delta` adds to its block."""
    if isinstance(delta, Content):
        return {"type": "text_delta", "text": delta.text}
    if isinstance(delta, Reasoning):
        return {"type": "thinking_delta", "thinking": delta.text}
    return {"type": "input_json_delta", "partial_json": delta.arguments}


class Blocks:
    """The blocks of a stream: one is open at a time."""

    def __init__(self) -> None:
        self._index, self._part = -1, object()  # of the open block

    def events(self, delta: Delta) -> list[bytes]:
        """What is sent for it: an end and a beginning where it is of another block than the one before."""
        found, part = list[bytes](), part_of(delta)
        if part != self._part:
            found += self.end()
            self._index, self._part = self._index + 1, part
            start = {"type": "content_block_start", "index": self._index, "content_block": begun(delta)}
            found.append(event(start, "content_block_start"))
        more = {"type": "content_block_delta", "index": self._index, "delta": grown(delta)}
        return [*found, event(more, "content_block_delta")]

    def end(self) -> list[bytes]:
        if self._index < 0:
            return []
        return [event({"type": "content_block_stop", "index": self._index}, "content_block_stop")]


async def _events(made: Reply, order: Order) -> AsyncIterator[bytes]:
    yield event({"type": "message_start", "message": made.head(order, [])}, "message_start")
    blocks, said = Blocks(), False
    try:
        async for news in follow(order):
            if news is None:
                yield event({"type": "ping"}, "ping")
                continue
            for delta in (said.delta for said in news.said):
                said = True
                for one in blocks.events(delta):
                    yield one
        for one in blocks.end() if said else [*blocks.events(Content("")), *blocks.end()]:
            yield one
    except Exception as error:  # noqa: BLE001  told, not swallowed
        yield event(anthropic_body(error), "error")
        return
    used = usage_of(order.tickets[0].completion)
    yield event({"type": "message_delta", "delta": made.ended(order), "usage": used}, "message_delta")
    yield event({"type": "message_stop"}, "message_stop")


async def count_tokens(call: Call) -> Response:
    body = await call.body()
    llm = (await call.model(body)).opened
    chat = read_chat(body)
    return reply({"input_tokens": len(await call.shop.on_text(lambda: chat_ids(chat, llm)))})
