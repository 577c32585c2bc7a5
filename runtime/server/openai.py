"""OpenAI's chat completions and completions, as its SDKs and llama.cpp's clients send and read them."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from flatlm import __version__
from flatlm.runtime.errors import UsageError
from flatlm.runtime.generation.answer import Completion, Prompt
from flatlm.runtime.generation.logprobs import TokenLogprob
from flatlm.runtime.llm import LLM
from flatlm.runtime.server import chances
from flatlm.runtime.server.asks import (
    asked,
    chat_ids,
    chat_prompt,
    openai_chat,
    prompts_of,
    sampling_of,
    siblings,
)
from flatlm.runtime.server.failures import NotSupported, openai_body
from flatlm.runtime.server.forms import openai_form, with_form
from flatlm.runtime.server.hosts import Host
from flatlm.runtime.server.orders import News, Said, follow, timings_of, usage
from flatlm.runtime.server.shop import Call
from flatlm.runtime.server.tickets import Asked, Order
from flatlm.runtime.server.wire import DONE, event, reply
from flatlm.runtime.settings import Settings
from flatlm.runtime.text.tokenizer import Tokenizer
from flatlm.runtime.text.tools.deltas import Content, Delta, Reasoning

FINGERPRINT = f"b0-flatlm-{__version__}"
REASONS = {"stop": "stop", "length": "length", "cancelled": "stop", "interrupted": "stop"}
PING = b": waiting\n\n"


@dataclass(frozen=True)
class Reply:
    """What all events and the whole of one answer have in common. `chat`: else a completion."""

    model: str
    tokenizer: Tokenizer
    chat: bool
    stream: bool = False
    usage: bool = False  # an event of its own in the end
    timings: bool = False  # with each event
    progress: bool = False  # while the prompt is read
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def head(self, streamed: bool) -> dict[str, Any]:
        kind = ("chat.completion" + ".chunk" * streamed) if self.chat else "text_completion"
        return {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + self.number,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }

    def said(self, index: int, said: Said) -> dict[str, Any]:
        """An event with what is new. The drafter that guessed it other clients do not read."""
        logprobs = self.logprobs(said.logprobs, said.start) if said.logprobs else None
        choice: dict[str, Any] = {"index": index, "finish_reason": None, "logprobs": logprobs}
        if self.chat:
            choice["delta"] = shown(said.delta)
        elif isinstance(said.delta, Content):
            choice["text"] = said.delta.text
        one = {**self.head(True), "choices": [choice]}
        return {**one, "flatlm": {"source": said.source}} if said.source else one

    def logprobs(self, found: Sequence[TokenLogprob], start: int = 0) -> dict[str, Any]:
        if self.chat:
            return chances.chat_logprobs(found, self.tokenizer)
        return chances.completion_logprobs(found, self.tokenizer, start)

    def end(self, index: int, completion: Completion) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": reason_of(completion)}
        choice |= {"delta": dict[str, Any]()} if self.chat else {"text": "", "logprobs": None}
        return {**self.head(True), "choices": [choice], "timings": timings_of(completion.timings)}

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        choices = [self._choice(index, one) for index, one in enumerate(completions)]
        timings = timings_of(completions[0].timings)
        return {**self.head(False), "choices": choices, "usage": usage(completions), "timings": timings}

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": reason_of(completion)}
        choice["logprobs"] = self.logprobs(completion.logprobs) if completion.logprobs else None
        return choice | ({"message": message(completion)} if self.chat else {"text": completion.text})


def reason_of(completion: Completion) -> str:
    called = completion.finish_reason == "stop" and completion.tool_calls
    return "tool_calls" if called else REASONS[completion.finish_reason]


def message(completion: Completion) -> dict[str, Any]:
    """A whole answer: its text, its thoughts, what it calls."""
    calls = completion.tool_calls
    found: dict[str, Any] = {"role": "assistant", "content": completion.content or (None if calls else "")}
    if completion.reasoning:
        found["reasoning_content"] = completion.reasoning
    if calls:
        found["tool_calls"] = [
            {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
            for one in calls
        ]
    return found


def shown(delta: Delta) -> dict[str, Any]:
    """A piece of an answer to a chat."""
    if isinstance(delta, Content):
        return {"content": delta.text}
    if isinstance(delta, Reasoning):
        return {"reasoning_content": delta.text}
    call: dict[str, Any] = {"index": delta.index, "function": {"arguments": delta.arguments}}
    if delta.id:
        call |= {"id": delta.id, "type": "function"}
        call["function"] = {"name": delta.name, "arguments": delta.arguments}
    return {"tool_calls": [call]}


def _reply(body: Settings, host: Host, kind: str) -> Reply:
    return Reply(
        host.name,
        host.opened.tokenizer,
        kind == "chat.completion",
        body.get("stream", bool, False),
        body.table("stream_options").get("include_usage", bool, False),
        body.get("timings_per_token", bool, False),
        body.get("return_progress", bool, False),
    )


async def chat_completions(call: Call) -> Response:
    body = await call.body()
    host = await call.model(body)
    llm = host.opened
    options = sampling_of(body, host.opening.sampling, chances.of_chat(body))
    options = with_form(options, openai_form(body))
    chat, n = openai_chat(body), choices_of(body, host)
    one = await call.shop.on_text(lambda: asked(chat_prompt(chat, options, llm), llm))
    asks = siblings(one, n)
    return await answered(call, _reply(body, host, "chat.completion"), call.order(host, asks))


async def completions(call: Call) -> Response:
    body = await call.body()
    host = await call.model(body)
    llm = host.opened
    options = sampling_of(body, host.opening.sampling, chances.of_completion(body))
    options = with_form(options, openai_form(body))
    if body.get("suffix", str):
        raise NotSupported("suffix: this model does not fill in the middle", param="suffix")
    n, prompt = choices_of(body, host), body.values.get("prompt")

    def read() -> list[Asked]:
        prompts = [asked(Prompt(ids, options, True), llm) for ids in prompts_of(prompt, llm)]
        return [one for first in prompts for one in siblings(first, n)]

    asks = await call.shop.on_text(read)
    return await answered(call, _reply(body, host, "text_completion"), call.order(host, asks))


def choices_of(body: Settings, host: Host) -> int:
    """`n` of a request, at most as many as there are slots."""
    n = body.get("n", int, 1, low=1)
    if n > host.slots:
        raise UsageError(f"n: at most {host.slots}, the slots of this server (--parallel)", param="n")
    return n


async def answered(call: Call, made: Reply, order: Order) -> Response:
    """The response to a request that was read."""
    if not made.stream:
        return reply(made.whole(await call.completed(order)))
    return call.streamed(_events(made, order), order)


async def _events(made: Reply, order: Order) -> AsyncIterator[bytes]:
    """The events of a stream. An error ends it with an event, for its status is sent."""
    if made.chat:
        for index in range(len(order.tickets)):
            choice = {"index": index, "delta": {"role": "assistant", "content": None}, "finish_reason": None}
            yield event({**made.head(True), "choices": [choice]})
    try:
        async for news in follow(order):
            if news is None:
                yield PING
            else:
                for one in _of_news(made, order, news):
                    yield event(one)
    except Exception as error:  # noqa: BLE001  told, not swallowed
        yield event(openai_body(error))
        return
    if made.usage:
        ended = [ticket.completion for ticket in order.tickets]
        timings = timings_of(ended[0].timings)
        yield event({**made.head(True), "choices": [], "usage": usage(ended), "timings": timings})
    yield DONE


def _of_news(made: Reply, order: Order, news: News) -> list[dict[str, Any]]:
    index, events = news.index, list[dict[str, Any]]()
    completion = order.tickets[index].completion
    if news.read is not None and made.progress:
        held, read, total = news.read
        choice = (
            {"index": index, "delta": {}, "finish_reason": None}
            if made.chat
            else {"text": "", "index": index}
        )
        spent = 1e3 * completion.timings.prefill_seconds
        progress = {"total": total, "cache": held, "processed": read, "time_ms": spent}
        events.append({**made.head(True), "choices": [choice], "prompt_progress": progress})
    events += [made.said(index, said) for said in news.said]
    if made.timings:
        for one in events:
            one["timings"] = timings_of(completion.timings)
    return [*events, made.end(index, completion)] if news.ended else events


async def models(call: Call) -> Response:
    return reply({"object": "list", "data": [model_row(host) for host in call.shop.hosts.values()]})


async def model(call: Call) -> Response:
    return reply(model_row(call.shop.named(call.request.path_params["name"])))


def model_row(host: Host) -> dict[str, Any]:
    meta = host.about
    return {
        "id": host.name,
        "aliases": [host.name],
        "tags": [],
        "object": "model",
        "created": host.created,
        "owned_by": "flatlm",
        "meta": {
            "n_vocab": meta.vocab_size,
            "n_ctx_train": meta.context_length,
            "n_params": meta.parameters,
            "size": host.bytes,
        },
    }


async def embeddings(call: Call) -> Response:
    await call.body()
    raise NotSupported(
        "embeddings are not made here: the models are made to write, and their states are no good vectors of "
        "texts; use a model of its own for that"
    )


async def input_tokens(call: Call) -> Response:
    body = await call.body()
    host = await call.model(body)
    llm: LLM = host.opened
    chat = openai_chat(body)
    ids = await call.shop.on_text(lambda: chat_ids(chat, llm))
    return reply({"object": "response.input_tokens", "input_tokens": len(ids)})
