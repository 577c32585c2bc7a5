"""A stream for programs with an event loop: it computes on a thread of its own and blocks no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from flatlm.runtime.generation.answer import Completion
from flatlm.runtime.generation.stream import Stream

T = TypeVar("T")


def one_thread() -> ThreadPoolExecutor:
    """What async streams of one model compute on: one at a time. It starts with the first of them."""
    return ThreadPoolExecutor(1, "flatlm")


class AsyncStream(AsyncIterator[str]):
    """An answer as it is written: `async for` gives pieces of text; `completion` is what there is.

    It begins when it is read first. A task that is cancelled while it reads ends the answer.
    """

    def __init__(self, begin: Callable[[], Stream], worker: ThreadPoolExecutor) -> None:
        self._begin, self._worker = begin, worker
        self._stream: Stream | None = None
        self._cancelled = False

    async def __anext__(self) -> str:
        try:
            piece = await self._run(self._next)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def run(self) -> Completion:
        """Take all pieces and return the whole."""
        async for _ in self:
            pass
        return self.completion

    def cancel(self) -> None:
        """End the answer at its next step, from any thread; what was produced stays in `completion`."""
        self._cancelled = True
        if self._stream is not None:
            self._stream.cancel()

    async def aclose(self) -> None:
        """End the answer; after it the model is free for others."""
        self.cancel()
        if self._stream is not None:
            await self._run(self._stream.close)

    @property
    def completion(self) -> Completion:
        """The answer so far; begin to read it first."""
        assert self._stream is not None, "an answer begins when it is read"
        return self._stream.completion

    def _next(self) -> str | None:
        if self._stream is None:
            if self._cancelled:
                return None
            self._stream = self._begin()
        return next(self._stream, None)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)
