"""Bytes in and out: bodies with a limit and a time, JSON, server-sent events, and clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from flatlm.runtime import settings
from flatlm.runtime.errors import UsageError
from flatlm.runtime.server.failures import LateError, SlowBody, TooLarge
from flatlm.runtime.settings import Settings

T = TypeVar("T")

CLOSE = {"Connection": "close"}
MOST_BODY = 4 << 20  # bytes; a context of 32,768 tokens has about 130,000
BODY_SECONDS = 30.0  # without a byte
SILENCE = 10.0  # seconds without a byte to the client; proxies cut at 60
DONE = b"data: [DONE]\n\n"


class GoneError(Exception):
    """The client has gone away."""


async def read_json(request: Request, most: int = MOST_BODY) -> Settings:
    """The JSON object of a request. Raises TooLarge before a large body is read, SlowBody, GoneError where
    the client leaves in its midst, UsageError.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > most:
        raise TooLarge(f"the body has {declared} bytes, at most {most} are read", headers=CLOSE)
    parts, size, chunks = list[bytes](), 0, request.stream()
    while True:
        try:
            part = await asyncio.wait_for(anext(chunks, None), BODY_SECONDS)
        except ClientDisconnect:
            raise GoneError from None
        except asyncio.TimeoutError:
            raise SlowBody(
                f"no byte of the body came for {BODY_SECONDS:.0f} seconds", headers=CLOSE
            ) from None
        if part is None:
            break
        parts.append(part)
        size += len(part)
        if size > most:
            raise TooLarge(f"the body has more than {most} bytes", headers=CLOSE)
    return settings.parse(b"".join(parts), "the request", UsageError, "send a JSON object")


def packed(value: Any) -> bytes:
    """JSON on one line, in UTF-8: a text that came from a tokenizer or a parsed request has its bytes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def reply(value: Any) -> Response:
    return Response(packed(value), media_type="application/json")


def event(value: Any, name: str | None = None) -> bytes:
    """One server-sent event; with a `name` as Anthropic's and OpenAI's Responses have them."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + packed(value) + b"\n\n"


def line(value: Any) -> bytes:
    """One line of NDJSON."""
    return packed(value) + b"\n"


async def while_there(request: Request, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of `work`, which is cancelled when the client goes away (GoneError) or `seconds` have passed
    (LateError). The body was read: whatever is received now says that the client is gone.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive, seconds))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GoneError if gone.result() else LateError(f"the answer took more than {seconds:g} seconds")
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _gone(receive: Receive, seconds: float) -> bool:
    """True when the client is; False after `seconds`."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    try:
        await asyncio.wait_for(watch(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


class Streamed(Response):
    """`chunks` as they come, until they end or the client goes away; `ended` is called in the end."""

    def __init__(
        self, chunks: AsyncIterator[bytes], media_type: str, seconds: float, ended: Callable[[], None]
    ) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self.headers["Cache-Control"], self.headers["X-Accel-Buffering"] = "no-store", "no"
        self._chunks, self._seconds, self._ended = chunks, seconds, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            with contextlib.suppress(GoneError, LateError):
                await while_there(Request(scope, receive), write(), self._seconds)
        finally:
            self._ended()
