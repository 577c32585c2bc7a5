"""The models of the models' folder in Simon Willison's `llm`: `llm -m flatlm/NAME "…"`, tools, schemas.

`llm` finds `plugin` by the entry point of this distribution. It is made when it is asked for, so that this
module can be read where `llm` is not installed.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from flatlm.runtime import names
from flatlm.runtime.errors import FlatlmError, UsageError
from flatlm.runtime.llm import LLM
from flatlm.runtime.text.tools.deltas import Content, Delta, folded

PREFIX = "flatlm/"


def __getattr__(name: str) -> Any:
    if name != "plugin":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _plugin()


@functools.lru_cache(maxsize=1)
def opened(name: str) -> LLM:
    """The model of that name. One stays open: `llm` asks one model at a time."""
    return LLM(name)


def messages_of(chain: Iterable[Any]) -> list[dict[str, Any]]:
    """The messages of `llm` (a role, and parts) as OpenAI's interface has them. UsageError for a part that is
    neither text, thought, call nor result.
    """
    found: list[dict[str, Any]] = []
    for message in chain:
        texts, calls = [], []
        for part in message.parts:
            kind = type(part).__name__
            if kind == "TextPart":
                texts.append(part.text)
            elif kind == "ToolCallPart":
                function = {"name": part.name, "arguments": part.arguments}
                calls.append({"id": part.tool_call_id or "", "type": "function", "function": function})
            elif kind == "ToolResultPart":
                found.append({"role": "tool", "tool_call_id": part.tool_call_id, "content": part.output})
            elif kind != "ReasoningPart":
                raise UsageError(f"{kind}: the model reads text only")
        if texts or calls:
            called = {"tool_calls": calls} if calls else {}
            found.append({"role": message.role, "content": "\n".join(texts), **called})
    return found


def execute(name: str, prompt: Any, response: Any, call_of: Any) -> Iterator[str]:
    """The answer of the model `name` in pieces; what it called and cost goes to `response`."""
    options = {key: value for key, value in prompt.options if value is not None}
    if prompt.schema:
        options["json_schema"] = prompt.schema
    if prompt.tools:
        options["tools"] = [
            {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
            for tool in prompt.tools
        ]
    llm = opened(name)
    wanted = llm.chat_prompt(messages_of(prompt.messages), **options)
    reader = wanted.reading.reader() if wanted.reading else None
    stream, deltas = llm.stream_prompt(wanted), list[Delta]()
    for piece in stream:
        new = reader.push(piece) if reader else [Content(piece)]
        deltas += new
        yield from (delta.text for delta in new if isinstance(delta, Content))
    rest = reader.finish() if reader else []
    yield from (delta.text for delta in rest if isinstance(delta, Content))
    for call in folded([*deltas, *rest]).tool_calls:
        response.add_tool_call(
            call_of(name=call.name, arguments=json.loads(call.arguments), tool_call_id=call.id)
        )
    timings = stream.completion.timings
    response.set_usage(input=timings.prompt_tokens, output=timings.generated_tokens)


@functools.lru_cache(maxsize=1)
def _plugin() -> Any:
    """What `llm` registers: its classes are made of its own."""
    from pydantic import Field

    llm: Any = importlib.import_module("llm")

    class Options(llm.Options):  # type: ignore[misc]
        temperature: float | None = Field(None, ge=0, description="0 always takes the likeliest token")
        max_tokens: int | None = Field(None, ge=-1, description="most tokens to write")
        top_k: int | None = Field(None, ge=0, description="sample among the K likeliest tokens, 0: all")
        top_p: float | None = Field(None, ge=0, le=1, description="sample among tokens of total share P")
        min_p: float | None = Field(
            None, ge=0, le=1, description="drop tokens less likely than P x the first"
        )
        repeat_penalty: float | None = Field(None, gt=0, description="make recent tokens less likely, 1: off")
        seed: int | None = Field(None, ge=-1, description="seed of the sampling")

    class Model(llm.Model):  # type: ignore[misc]
        can_stream = supports_schema = supports_tools = True

        def __init__(self, name: str) -> None:
            self.model_id, self._name = PREFIX + name, name

        def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
            try:
                yield from execute(self._name, prompt, response, llm.ToolCall)
            except FlatlmError as error:
                raise llm.ModelError(str(error)) from error

    Model.Options = Options

    class Embedding(llm.EmbeddingModel):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.model_id, self._name = PREFIX + name, name

        def embed_batch(self, items: Iterable[str]) -> Iterator[list[float]]:
            for vector in opened(self._name).embed(list(items)):
                yield vector.tolist()

    class Plugin:
        @llm.hookimpl  # type: ignore[untyped-decorator]
        def register_models(self, register: Any) -> None:
            for name in names.named():
                register(Model(name))

        @llm.hookimpl  # type: ignore[untyped-decorator]
        def register_embedding_models(self, register: Any) -> None:
            for name in names.named():
                register(Embedding(name))

    return Plugin()
