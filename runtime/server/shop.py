"""What all dialects share: the models by name, the desk that takes orders, threads for work on texts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from flatlm.runtime.generation.answer import Completion
from flatlm.runtime.server.engine import Engine
from flatlm.runtime.server.failures import NotFound
from flatlm.runtime.server.hosts import Host
from flatlm.runtime.server.options import ServeOptions
from flatlm.runtime.server.orders import Desk, completed
from flatlm.runtime.server.tickets import Asked, Order
from flatlm.runtime.server.wire import Streamed, read_json, while_there
from flatlm.runtime.settings import Settings

T = TypeVar("T")
EVENTS, LINES = "text/event-stream", "application/x-ndjson"
LATEST = ":latest"  # Ollama's clients add it to a name without a tag


@dataclass(frozen=True)
class Shop:
    """A server's inside. `hosts` by name, the first is the default."""

    hosts: dict[str, Host]
    engine: Engine
    desk: Desk
    options: ServeOptions
    texts: ThreadPoolExecutor
    started: float = field(default_factory=time.time)

    @property
    def first(self) -> Host:
        return next(iter(self.hosts.values()))

    def named(self, name: str | None) -> Host:
        """The model of that name. Of a single one any name is: clients are made for names of others."""
        found = self.known(name) if name else self.first
        if found is None and len(self.hosts) == 1:
            return self.first
        if found is None:
            raise NotFound(
                f"model {name!r} is not served here; there are: {', '.join(self.hosts)}", param="model"
            )
        return found

    def known(self, name: str) -> Host | None:
        return self.hosts.get(name) or self.hosts.get(name.removesuffix(LATEST))

    async def ready(self, host: Host) -> Host:
        """Have it open. Raises what opening it raises."""
        while not host.loaded:
            await asyncio.wrap_future(self.engine.call(lambda: self.engine.open(host)))
        return host

    async def on_text(self, work: Callable[[], T]) -> T:
        """`work` on a thread of its own: rendering and tokenizing take a while."""
        return await asyncio.get_running_loop().run_in_executor(self.texts, work)


@dataclass(frozen=True)
class Call:
    """One request, as handlers see it."""

    shop: Shop
    request: Request
    held: list[Host] = field(default_factory=list)

    async def body(self) -> Settings:
        return await read_json(self.request, self.shop.options.max_body)

    async def model(self, body: Settings) -> Host:
        """The model that a body names, open."""
        return await self.ready(self.shop.named(body.get("model", str)))

    async def ready(self, host: Host) -> Host:
        """Have it open until this request is an order, or over."""
        self.held.append(host)
        host.held += 1
        return await self.shop.ready(host)

    def release(self) -> None:
        """What was held may rest."""
        for host in self.held:
            host.held -= 1
        self.shop.engine.look()

    def order(self, host: Host, asked: Sequence[Asked]) -> Order:
        return self.shop.desk.order(host, asked)

    async def completed(self, order: Order) -> list[Completion]:
        """All answers of an order; a client that goes away cancels it."""
        try:
            return await while_there(self.request, completed(order), self.shop.options.request_timeout)
        finally:
            self.shop.engine.cancel(order)

    def streamed(self, chunks: AsyncIterator[bytes], order: Order, media_type: str = EVENTS) -> Response:
        """An order as it is answered; a client that goes away cancels it."""
        seconds, engine = self.shop.options.request_timeout, self.shop.engine
        return Streamed(chunks, media_type, seconds, lambda: engine.cancel(order))
