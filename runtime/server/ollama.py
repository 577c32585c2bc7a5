"""Ollama's API, as Home Assistant, Open WebUI, Continue and Ollama's own clients send and read it.

Answers are lines of JSON, durations nanoseconds, arguments of calls objects. A model is listed as NAME:latest
and known by both.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

from starlette.responses import Response

from flatlm.runtime.errors import UsageError
from flatlm.runtime.generation.answer import Completion, Prompt
from flatlm.runtime.server.asks import Chat, asked, chat_prompt, encoded, message_of, sampling_of, tools_of
from flatlm.runtime.server.failures import NotFound, NotSupported, ollama_body
from flatlm.runtime.server.forms import ollama_form, with_form
from flatlm.runtime.server.hosts import Host
from flatlm.runtime.server.orders import follow
from flatlm.runtime.server.shop import LATEST, LINES, Call
from flatlm.runtime.server.tickets import Asked, Order
from flatlm.runtime.server.wire import line, reply
from flatlm.runtime.settings import Settings
from flatlm.runtime.text.tools.deltas import Content, Delta, Message, Reasoning, folded

VERSION = "0.12.0"  # of Ollama, whose API this is
NANO = 10**9
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)(ns|us|µs|ms|s|m|h)")
NEVER = "2318-01-01T00:00:00Z"  # that a model leaves which stays: Ollama writes a far day, too


def now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True)
class Reply:
    """How an answer is put: to /api/chat as a message, to /api/generate as a text."""

    model: str
    chat: bool
    started: float  # monotonic
    loaded: float  # seconds that opening the model took

    def part(self, text: str, beside: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """A line with `text` and, in a chat's message, what is `beside` it."""
        if self.chat:
            said: dict[str, Any] = {"message": {"role": "assistant", "content": text, **(beside or {})}}
        else:
            said = {"response": text, **(beside or {})}
        return {"model": self.model, "created_at": now(), **said, "done": False, **more}

    def beside(self, message: Message) -> dict[str, Any]:
        """Thoughts, and calls with their arguments as objects."""
        found: dict[str, Any] = {"thinking": message.reasoning} if message.reasoning else {}
        if message.tool_calls:
            found["tool_calls"] = [
                {"function": {"name": one.name, "arguments": json.loads(one.arguments or "{}")}}
                for one in message.tool_calls
            ]
        return found

    def end(self, text: str, completion: Completion, ids: list[int], **beside: Any) -> dict[str, Any]:
        """The last line, with what it cost."""
        timings = completion.timings
        end = self.part(
            text,
            beside,
            done=True,
            done_reason="length" if completion.finish_reason == "length" else "stop",
            total_duration=int(NANO * (time.monotonic() - self.started)),
            load_duration=int(NANO * self.loaded),
            prompt_eval_count=timings.prompt_tokens,
            prompt_eval_duration=int(NANO * timings.prefill_seconds),
            eval_count=timings.generated_tokens,
            eval_duration=int(NANO * timings.decode_seconds),
        )
        return end if self.chat else {**end, "context": ids}


async def chat(call: Call) -> Response:
    body, started = await call.body(), time.monotonic()
    host = named(call, body)
    messages = [_message(one) for one in body.tables("messages")]
    if not messages:
        return await _only_loaded(call, host, body, {"message": {"role": "assistant", "content": ""}})
    opened = await _opened(call, host, body)
    llm = host.opened
    options = with_form(sampling_of(_options(body), host.opening.sampling), ollama_form(body))
    put = Chat(messages, tools_of(body), _variables(body))
    one = await call.shop.on_text(lambda: asked(chat_prompt(put, options, llm), llm))
    return await _answered(call, host, body, Reply(_full(host), True, started, opened), one)


async def generate(call: Call) -> Response:
    body, started = await call.body(), time.monotonic()
    host, text = named(call, body), body.get("prompt", str, "")
    if not text:
        return await _only_loaded(call, host, body, {"response": ""})
    if body.get("suffix", str):
        raise NotSupported("suffix: this model does not fill in the middle")
    _refuse_images(body)
    opened = await _opened(call, host, body)
    llm = host.opened
    options = with_form(sampling_of(_options(body), host.opening.sampling), ollama_form(body))
    system = body.get("system", str)
    messages = [{"role": "system", "content": system}] if system else []
    put = Chat([*messages, {"role": "user", "content": text}], None, _variables(body))
    before = body.each("context", int, low=0, high=llm.backend.vocab - 1)

    def read() -> Asked:
        raw = body.get("raw", bool, False)
        asks = Prompt(encoded(text, llm), options, True) if raw else chat_prompt(put, options, llm)
        return asked(replace(asks, ids=[*before, *asks.ids]), llm)

    one = await call.shop.on_text(read)
    return await _answered(call, host, body, Reply(_full(host), False, started, opened), one)


async def _answered(call: Call, host: Host, body: Settings, made: Reply, one: Asked) -> Response:
    order = call.order(host, [one])
    if body.get("stream", bool, True):
        return call.streamed(_lines(made, order), order, LINES)
    (completion,) = await call.completed(order)
    return reply(made.end(completion.content, completion, order.ids(0), **made.beside(completion.message)))


async def _lines(made: Reply, order: Order) -> AsyncIterator[bytes]:
    """The lines of a stream; an empty one where nothing happens: NDJSON has no comments. Calls come whole."""
    calls = list[Delta]()
    try:
        async for news in follow(order):
            if news is None:
                yield line(made.part(""))
                continue
            for delta in (said.delta for said in news.said):
                if isinstance(delta, Content):
                    yield line(made.part(delta.text))
                elif isinstance(delta, Reasoning):
                    yield line(made.part("", {"thinking": delta.text}))
                else:
                    calls.append(delta)
        if calls:
            yield line(made.part("", made.beside(folded(calls))))
    except Exception as error:  # noqa: BLE001  told, not swallowed
        yield line(ollama_body(error))
        return
    yield line(made.end("", order.tickets[0].completion, order.ids(0)))


async def _opened(call: Call, host: Host, body: Settings) -> float:
    """Have the model open; the seconds that took. `keep_alive` says how long it stays."""
    keep = body.values.get("keep_alive")
    if keep is not None:
        host.keep_seconds = duration(keep)
    started = time.monotonic()
    await call.ready(host)
    return time.monotonic() - started


async def _only_loaded(call: Call, host: Host, body: Settings, said: Mapping[str, Any]) -> Response:
    """A request without a prompt opens the model, or closes it with `keep_alive` 0."""
    if body.values.get("keep_alive") in (0, "0"):
        host.keep_seconds = 0
        call.shop.engine.call(host.rest)
        reason = "unload"
    else:
        await _opened(call, host, body)
        reason = "load"
    return reply({"model": _full(host), "created_at": now(), **said, "done": True, "done_reason": reason})


def duration(value: Any) -> float:
    """Seconds of Ollama's durations: numbers, or texts as 5m or 1h30m; negative: for ever."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return max(float(value), -1.0)
    text = value.strip() if isinstance(value, str) else ""
    try:
        return max(float(text), -1.0)
    except ValueError:
        pass
    parts = _DURATION.findall(text)
    if "".join(a + b for a, b in parts) != text.lstrip("-") or not parts:
        raise UsageError(f"keep_alive: seconds or a duration like 5m, not {value!r:.50}", param="keep_alive")
    return -1.0 if text.startswith("-") else sum(float(a) * SECONDS[b] for a, b in parts)


def _options(body: Settings) -> Settings:
    """`options`, in which a context size is let be: what does not fit is refused, never cut."""
    return body.table("options")


def _variables(body: Settings) -> dict[str, Any]:
    """Of the template: whether to think."""
    think = body.values.get("think")
    return {} if think is None else {"enable_thinking": bool(think)}


def _message(given: Settings) -> dict[str, Any]:
    _refuse_images(given)
    message = message_of(given)
    if thinking := given.get("thinking", str):
        message["reasoning_content"] = thinking
    return message


def _refuse_images(given: Settings) -> None:
    if given.values.get("images"):
        raise NotSupported("images: this model reads text only")


def named(call: Call, body: Settings) -> Host:
    """The model of a request; NotFound where it is not served, upon which clients pull."""
    name = body.get("model", str) or body.get("name", str)
    if not name:
        raise UsageError("model is required", param="model")
    host = call.shop.known(name)
    if host is None:
        raise NotFound(f"model '{name}' not found", param="model")
    return host


def _full(host: Host) -> str:
    return host.name if ":" in host.name else host.name + LATEST


async def version(call: Call) -> Response:
    return reply({"version": VERSION})


async def tags(call: Call) -> Response:
    return reply({"models": [_row(host) for host in call.shop.hosts.values()]})


async def ps(call: Call) -> Response:
    rows = []
    for host in call.shop.hosts.values():
        left = host.until_closed()
        if host.loaded:
            then = datetime.now(timezone.utc) + timedelta(seconds=min(left or 0.0, 1e8))
            expires = NEVER if left is None else then.isoformat().replace("+00:00", "Z")
            context = host.opened.backend.context
            rows.append({**_row(host), "expires_at": expires, "size_vram": 0, "context_length": context})
    return reply({"models": rows})


def _row(host: Host) -> dict[str, Any]:
    made = datetime.fromtimestamp(host.created, timezone.utc).isoformat().replace("+00:00", "Z")
    digest = host.digest
    row = {"name": _full(host), "model": _full(host), "modified_at": made, "size": host.bytes}
    return {**row, "digest": digest, "details": _details(host)}


def _details(host: Host) -> dict[str, Any]:
    family, parameters = host.about.architecture, host.about.parameters
    size = f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.2f}M"
    return {
        "parent_model": "",
        "format": "flatlm",
        "family": family,
        "families": [family],
        "parameter_size": size,
        "quantization_level": host.about.recipe,
    }


async def show(call: Call) -> Response:
    host = named(call, await call.body())
    llm = (await call.ready(host)).opened
    family = host.about.architecture
    template = llm.template or ""
    return reply(
        {
            "modelfile": f"FROM {host.name}\n",
            "parameters": f"num_ctx {llm.backend.context}",
            "template": template,
            "details": _details(host),
            "model_info": {
                "general.architecture": family,
                "general.parameter_count": host.about.parameters,
                f"{family}.context_length": llm.backend.context,
            },
            "capabilities": ["completion", *(["tools"] if "tools" in template else [])],
            "modified_at": _row(host)["modified_at"],
        }
    )


async def pull(call: Call) -> Response:
    """There is nothing to fetch: what is served is there, what is not cannot be had here."""
    named(call, await call.body())
    return reply({"status": "success"})


async def embed(call: Call) -> Response:
    named(call, await call.body())
    raise NotSupported("embeddings are not made here: the models are made to write")
