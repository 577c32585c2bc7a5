"""The target server: bodies of requests in all dialects, to the application. No 5xx but those meant."""

from __future__ import annotations

import asyncio
import functools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from flatlm.runtime.errors import UsageError
from flatlm.runtime.format.artifact import Manifest
from flatlm.runtime.options import BackendOptions
from flatlm.runtime.server.app import application
from flatlm.runtime.server.engine import Engine
from flatlm.runtime.server.guard import Access
from flatlm.runtime.server.hosts import Host, Opening
from flatlm.runtime.server.options import ServeOptions
from flatlm.runtime.server.orders import Desk
from flatlm.runtime.server.shop import Shop
from tests.fuzzing.mutation import byte_changes, json_changes
from tests.fuzzing.target import Case, DifferentError, Limits, Prepared, Target
from tests.serving import tiny_llm

MESSAGES = [
    {"role": "system", "content": "be"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
RESULT = {"type": "tool_result", "tool_use_id": "1", "content": "ok"}
GOOD: dict[str, Any] = {
    "/v1/chat/completions": {
        "messages": [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
        "max_tokens": 3, "temperature": 0.5, "seed": 1, "stop": ["x"], "n": 1, "stream": True,
        "logprobs": True, "top_logprobs": 2, "logit_bias": {"40": 1}, "tools": [TOOL],
        "stream_options": {"include_usage": True}, "response_format": {"type": "text"},
    },
    "/v1/completions": {"prompt": ["ab", [40, 41]], "max_tokens": 3, "logprobs": 1},
    "/completion": {"prompt": [40, "x", 41], "n_predict": 3, "n_probs": 2, "response_fields": ["content"]},
    "/tokenize": {"content": "é", "with_pieces": True, "add_special": True},
    "/detokenize": {"tokens": [40, 41, 258]},
    "/apply-template": {"messages": MESSAGES, "chat_template_kwargs": {"x": 1}},
    "/api/chat": {
        "model": "tiny", "messages": MESSAGES, "options": {"num_predict": 3, "top_k": 5},
        "keep_alive": "5m", "think": False, "format": "json", "tools": [TOOL],
    },
    "/api/generate": {"model": "tiny", "prompt": "x", "options": {"num_predict": 3}, "raw": True},
    "/api/show": {"model": "tiny"},
    "/v1/messages": {
        "max_tokens": 3, "system": [{"type": "text", "text": "be"}], "stop_sequences": ["x"],
        "messages": [{"role": "user", "content": [RESULT]}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"},
    },
    "/v1/responses": {"input": [{"role": "user", "content": "x"}], "max_output_tokens": 3, "stream": True},
}  # fmt: skip
MEANT = (400, 404, 408, 413, 501)


def server(folder: Path) -> Prepared:
    """Each case is the body of a POST to the path that is its name."""
    cases = [
        st.one_of(
            json_changes([body]).map(lambda value: json.dumps(value).encode()),
            byte_changes([json.dumps(body).encode()]),
        ).map(functools.partial(Case, path))
        for path, body in GOOD.items()
    ]

    @functools.lru_cache(maxsize=1)
    def started() -> tuple[asyncio.AbstractEventLoop, Any]:
        """In the child that runs cases: threads of the process that forked it are not there."""
        loop = asyncio.new_event_loop()
        about = Manifest("made up", "llama", "edge", 259, 400, 1000, 4.5, {})
        host = Host("tiny", about, Opening(BackendOptions(batch=2)), lambda: tiny_llm(folder, context=1500))
        engine = Engine([host])
        engine.start()
        shop = Shop({"tiny": host}, engine, Desk(engine, 8), ServeOptions(), ThreadPoolExecutor(1))
        return loop, application(shop, Access())

    def run(case: Case) -> None:
        loop, app = started()
        status = loop.run_until_complete(asyncio.wait_for(asked(app, case), 60))
        if status in MEANT:
            raise UsageError(f"{status}")
        if status != 200:
            raise DifferentError(f"{case.name} answers with {status}")

    return Prepared(st.one_of(cases), run)


async def asked(app: Any, case: Case) -> int:
    """The status of the response to a case, which is read to its end."""
    body, statuses, gone = [case.content], list[int](), asyncio.Event()

    async def receive() -> dict[str, Any]:
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [(b"host", b"localhost"), (b"content-length", str(len(case.content)).encode())]
    scope = {"type": "http", "method": "POST", "path": case.name, "raw_path": case.name.encode()}
    scope |= {"headers": headers, "query_string": b"", "http_version": "1.1", "scheme": "http"}
    scope |= {"server": ("localhost", 80), "client": ("127.0.0.1", 1), "root_path": ""}
    await app(scope, receive, send)
    gone.set()
    return statuses[0]


SERVER = Target(
    "server",
    (
        "flatlm.runtime.server.anthropic",
        "flatlm.runtime.server.asks",
        "flatlm.runtime.server.forms",
        "flatlm.runtime.server.llamacpp",
        "flatlm.runtime.server.ollama",
        "flatlm.runtime.server.openai",
        "flatlm.runtime.server.responses",
    ),
    server,
    Limits(seconds=10.0, memory=4 << 30),
)
