"""llama.cpp's own endpoints: /completion, tokens and texts, templates, what the server is and does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from starlette.responses import Response

from flatlm import __version__
from flatlm.runtime.errors import ResourceError, UsageError
from flatlm.runtime.generation.answer import Prompt
from flatlm.runtime.generation.logprobs import TokenLogprob
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import SamplingOptions
from flatlm.runtime.server import chances
from flatlm.runtime.server.asks import asked, chat_text, openai_chat, prompts_of, sampling_of, siblings
from flatlm.runtime.server.failures import NotSupported, openai_body
from flatlm.runtime.server.forms import openai_form, with_form
from flatlm.runtime.server.hosts import Host
from flatlm.runtime.server.openai import PING, choices_of
from flatlm.runtime.server.orders import follow, timings_of
from flatlm.runtime.server.shop import Call
from flatlm.runtime.server.tickets import Asked, Order
from flatlm.runtime.server.wire import event, reply
from flatlm.runtime.text.pieces import piece_of
from flatlm.runtime.text.tools.deltas import Content

STOPS = {"length": "limit", "cancelled": "none", "interrupted": "none"}


@dataclass(frozen=True)
class Reply:
    """What is told of the answers of one request."""

    host: Host
    llm: LLM
    order: Order
    tokens: bool  # ids beside texts
    fields: Sequence[str]  # of a whole answer, where not all are wanted; a/b is field b of a

    def part(self, index: int, text: str, ids: Sequence[int] = ()) -> dict[str, Any]:
        answer = self.order.tickets[index].answer
        written = 0 if answer is None else answer.written
        part = {"index": index, "content": text, "tokens": list(ids), "stop": False, "id_slot": -1}
        return {**part, "tokens_predicted": written, "tokens_evaluated": self.order.prompt_tokens(index)}

    def rated(self, found: Sequence[TokenLogprob]) -> dict[str, Any]:
        if not found:
            return {}
        return {"completion_probabilities": chances.probabilities(found, self.llm.tokenizer)}

    def whole(self, index: int, text: str | None = None) -> dict[str, Any]:
        """The answer; with the `text` that is left of it where the rest was streamed."""
        completion, answer = self.order.tickets[index].completion, self.order.tickets[index].answer
        assert answer is not None
        said = completion.text
        word = self.order.stopped_by(index)
        kind = STOPS.get(completion.finish_reason) or ("eos" if word is None else "word")
        full = len(answer.ids) > self.llm.backend.context
        whole = {
            "index": index,
            "content": said if text is None else text,
            "tokens": list(completion.tokens) if self.tokens and text is None else [],
            "id_slot": -1,
            "stop": True,
            "model": self.host.name,
            "tokens_predicted": completion.timings.generated_tokens,
            "tokens_evaluated": completion.timings.prompt_tokens,
            "generation_settings": settings_of(answer.prompt.options),
            "prompt": self.llm.tokenizer.decode(answer.prompt.ids, skip_special=False),
            "has_new_line": "\n" in said,
            "truncated": kind == "limit" and full,
            "stop_type": kind,
            "stopping_word": word or "",
            "tokens_cached": completion.timings.prompt_tokens + completion.timings.generated_tokens - 1,
            "timings": timings_of(completion.timings),
            **(self.rated(completion.logprobs) if text is None else {}),
        }
        return picked(whole, self.fields) if self.fields else whole


def picked(whole: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """The `fields` of an answer, those that it has."""
    found = {}
    for path in fields:
        value: Any = whole
        for key in path.split("/"):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[path] = value
    return found


def settings_of(options: SamplingOptions) -> dict[str, Any]:
    """The options under llama.cpp's names."""
    found = asdict(options)
    found |= {"temperature": found.pop("temp"), "n_predict": options.n, "max_tokens": options.n}
    del found["n"]
    return {**found, "stop": list(options.stop)}


async def completion(call: Call) -> Response:
    body = await call.body()
    host = await call.model(body)
    llm, top = host.opened, body.get("n_probs", int, 0, low=0, high=chances.MOST) or None
    options = with_form(sampling_of(body, host.opening.sampling, top), openai_form(body))
    n, given = choices_of(body, host), body.values.get("prompt")
    if given is None:
        raise UsageError("prompt: a text, ids, or a list of those is needed", param="prompt")

    def read() -> list[Asked]:
        prompts = [asked(Prompt(ids, options, True), llm) for ids in prompts_of(given, llm)]
        return [one for first in prompts for one in siblings(first, n)]

    asks = await call.shop.on_text(read)
    order, fields = call.order(host, asks), body.each("response_fields", str)
    made = Reply(host, llm, order, body.get("return_tokens", bool, False), fields)
    if body.get("stream", bool, False):
        return call.streamed(_events(made, body.get("return_progress", bool, False)), order)
    await call.completed(order)
    found = [made.whole(index) for index in range(len(asks))]
    return reply(found[0] if len(found) == 1 and not _many(given) else found)


def _many(prompt: Any) -> bool:
    return isinstance(prompt, list) and not any(type(one) is int for one in prompt)


async def _events(made: Reply, progress: bool) -> AsyncIterator[bytes]:
    try:
        async for news in follow(made.order):
            if news is None:
                yield PING
                continue
            index = news.index
            if news.read is not None and progress:
                held, read, total = news.read
                spent = 1e3 * made.order.tickets[index].completion.timings.prefill_seconds
                state = {"total": total, "cache": held, "processed": read, "time_ms": spent}
                yield event({**made.part(index, ""), "prompt_progress": state})
            for said in news.said:
                text = said.delta.text if isinstance(said.delta, Content) else ""
                yield event({**made.part(index, text, said.ids), **made.rated(said.logprobs)})
            if news.ended:
                yield event(made.whole(index, ""))
    except Exception as error:  # noqa: BLE001  told, not swallowed
        yield event(openai_body(error))


async def tokenize(call: Call) -> Response:
    body = await call.body()
    llm = (await call.model(body)).opened
    text, special = body.get("content", str, ""), body.get("add_special", bool, False)
    ids = await call.shop.on_text(lambda: llm.tokenizer.encode(text, special))
    if not body.get("with_pieces", bool, False):
        return reply({"tokens": ids})
    return reply({"tokens": [{"id": number, "piece": _shown(llm, number)} for number in ids]})


def _shown(llm: LLM, number: int) -> str | list[int]:
    """A token as text, as a list of bytes where it is no text by itself."""
    piece = piece_of(llm.tokenizer, number)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


async def detokenize(call: Call) -> Response:
    body = await call.body()
    llm = (await call.model(body)).opened
    ids = body.each("tokens", int, low=0, high=2**31)
    return reply({"content": llm.tokenizer.decode(ids, skip_special=False)})


async def apply_template(call: Call) -> Response:
    body = await call.body()
    llm = (await call.model(body)).opened
    chat = openai_chat(body)
    return reply({"prompt": await call.shop.on_text(lambda: chat_text(chat, llm))})


async def props(call: Call) -> Response:
    host = call.shop.first
    if not host.loaded and not host.counts["loads"]:
        await call.ready(host)
    context = host.opened.backend.context if host.loaded else host.about.context_length
    defaults = settings_of(host.opening.sampling)
    return reply(
        {
            "default_generation_settings": {"n_ctx": context, "params": defaults},
            "total_slots": host.slots,
            "model_alias": host.name,
            "model_path": str(host.path),
            "modalities": {"vision": False, "audio": False},
            "chat_template": (host.llm.template if host.llm else None) or "",
            "bos_token": host.llm.tokenizer.special.get("bos_token", "") if host.llm else "",
            "eos_token": host.llm.tokenizer.special.get("eos_token", "") if host.llm else "",
            "build_info": f"flatlm {__version__}",
            "is_sleeping": not host.loaded,
        }
    )


async def slots(call: Call) -> Response:
    """What each slot does; no text of anybody."""
    if call.shop.options.no_slots:
        raise NotSupported("this server does not answer /slots (--no-slots)")
    host = call.shop.first
    context = host.opened.backend.context if host.loaded else 0
    running = {one.sequence.slot: one for one in host.scheduler.running} if host.loaded else {}
    rows = []
    for number in range(host.slots):
        answer = running.get(number)
        written, left = (answer.written, answer.left) if answer else (0, 0)
        token = {"has_next_token": answer is not None, "n_remain": left, "n_decoded": written}
        row = {"id": number, "n_ctx": context, "is_processing": answer is not None, "next_token": [token]}
        rows.append(row)
    return reply(rows)


async def health(call: Call) -> Response:
    host = call.shop.first
    if host.failure is not None:
        raise ResourceError(f"the model could not be opened: {host.failure}")
    if not host.loaded and not host.counts["loads"]:
        raise ResourceError("Loading model")
    return reply({"status": "ok"})


COUNTERS = (  # Prometheus' name, count of a host, its unit, what it is
    ("prompt_tokens_total", "prompt_tokens", 1, "Prompt tokens that were read"),
    ("prompt_seconds_total", "prompt_us", 1e-6, "Seconds that reading took"),
    ("prompt_cached_tokens_total", "reused_tokens", 1, "Prompt tokens that were held already"),
    ("tokens_predicted_total", "generated_tokens", 1, "Tokens that were written"),
    ("tokens_predicted_seconds_total", "generated_us", 1e-6, "Seconds that writing took"),
    ("answers_total", "answers", 1, "Answers that have ended"),
    ("spec_decode_num_draft_tokens_total", "drafted_tokens", 1, "Tokens that drafters guessed"),
    ("spec_decode_num_accepted_tokens_total", "accepted_tokens", 1, "Guesses that were kept"),
    ("model_loads_total", "loads", 1, "Times that the model was opened"),
)


async def metrics(call: Call) -> Response:
    """For Prometheus, once as llamacpp:* of the first model, once as flatlm_* of all, by name."""
    if not call.shop.options.metrics:
        raise NotSupported("this server does not answer /metrics: start it with --metrics")
    hosts, lines = call.shop.hosts.values(), list[str]()
    for name, key, unit, what in COUNTERS:
        values = [(host.name, host.counts[key] * unit) for host in hosts]
        lines += _metric(name, "counter", what, values)
    for name, what, count in (
        ("requests_processing", "Answers that are read or written", lambda host: host.running),
        ("requests_deferred", "Answers that wait for a slot", lambda host: host.waiting),
        ("prompt_tokens_seconds", "Prompt tokens a second", lambda host: _rate(host, "prompt")),
        ("predicted_tokens_seconds", "Written tokens a second", lambda host: _rate(host, "generated")),
    ):
        lines += _metric(name, "gauge", what, [(host.name, count(host)) for host in hosts])
    found = Response("\n".join([*lines, ""]), media_type="text/plain; version=0.0.4")
    found.headers["Process-Start-Time-Unix"] = str(int(call.shop.started))
    return found


def _rate(host: Host, what: str) -> float:
    seconds = 1e-6 * host.counts[f"{what}_us"]
    return host.counts[f"{what}_tokens"] / seconds if seconds else 0.0


def _metric(name: str, kind: str, what: str, values: Sequence[tuple[str, float]]) -> list[str]:
    lines = [f"# HELP llamacpp:{name} {what}.", f"# TYPE llamacpp:{name} {kind}"]
    lines += [f"llamacpp:{name} {values[0][1]:g}"]
    lines += [f"# HELP flatlm_{name} {what}.", f"# TYPE flatlm_{name} {kind}"]
    for model, value in values:
        shown = model.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'flatlm_{name}{{model="{shown}"}} {value:g}')
    return lines
