"""The server as a process: sockets, uvicorn with time-outs of its own, signals, a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from flatlm.runtime.errors import UsageError
from flatlm.runtime.server.options import ServeOptions

HEADER_SECONDS = 10.0
MOST_CONNECTIONS = 200
MOST_HEADERS = 32 << 10  # bytes
STOP_SECONDS = 4  # that running answers have after SIGTERM
OLLAMA_PORT = 11434


class Protocol(H11Protocol):
    """uvicorn's, which closes connections whose next request does not come to the end of its headers."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._await_headers()
        elif self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    def _await_headers(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)


class Server(uvicorn.Server):
    """uvicorn's, whose signals end it and nothing else: the process goes on to its own end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not the main thread, which gets no signals
                before[number] = signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit  # the second one does not wait
        self.should_exit = True


def listen(options: ServeOptions) -> list[socket.socket]:
    """The sockets. Raises UsageError where an address is not to be had."""
    if options.host.endswith(".sock"):
        path = Path(options.host)
        with contextlib.suppress(FileNotFoundError):
            if path.is_socket():
                path.unlink()
        found = socket.socket(socket.AF_UNIX)
        try:
            found.bind(str(path))
        except OSError as error:
            raise UsageError(f"--host {path}: {error.strerror}", param="host") from None
        path.chmod(0o600)
        return [found]
    ports = [options.port, *([OLLAMA_PORT] if options.ollama else [])]
    return [_bound(options.host, port) for port in ports]


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        where = f"{host} port {port}"
        raise UsageError(f"cannot listen on {where}: {error.strerror or error}", param="port") from None


def addresses(sockets: Sequence[socket.socket], options: ServeOptions) -> list[str]:
    """URLs to write down."""
    scheme = "https" if options.ssl_certfile else "http"
    found = []
    for one in sockets:
        if one.family == socket.AF_UNIX:
            found.append(f"unix:{options.host}")
        else:
            host, port = one.getsockname()[:2]
            found.append(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
    return found


def server_of(app: ASGIApp, options: ServeOptions) -> Server:
    """The server of `app`, to be run with the sockets of `listen`."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        h11_max_incomplete_event_size=MOST_HEADERS,
        timeout_graceful_shutdown=STOP_SECONDS,
        ssl_keyfile=options.ssl_keyfile,
        ssl_certfile=options.ssl_certfile,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return Server(config)


def serve(app: ASGIApp, options: ServeOptions, sockets: list[socket.socket]) -> None:
    """Answer until a signal comes."""
    try:
        asyncio.run(server_of(app, options).serve(sockets=sockets))
    finally:
        for one in sockets:
            one.close()
        if options.host.endswith(".sock"):
            with contextlib.suppress(OSError):
                os.unlink(options.host)
