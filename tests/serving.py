"""A server over a made-up model, on a free port and in a thread of this process, asked through real HTTP."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from flatlm.runtime.drafting.auto import Auto
from flatlm.runtime.drafting.maxgram import MaxGram
from flatlm.runtime.drafting.schedule import Schedule
from flatlm.runtime.drafting.speculator import Speculator
from flatlm.runtime.format.artifact import Manifest
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import BackendOptions
from flatlm.runtime.server.app import application
from flatlm.runtime.server.engine import Engine
from flatlm.runtime.server.guard import Access
from flatlm.runtime.server.hosts import Host, Opening
from flatlm.runtime.server.options import ServeOptions
from flatlm.runtime.server.orders import Desk
from flatlm.runtime.server.run import addresses, listen, server_of
from flatlm.runtime.server.shop import Shop
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.tiny_text import CHATML, FakeBackend, byte_level, write_folder

VOCABULARY, CONTEXT = 259, 400  # of byte_level()
NAME = "tiny"


class SlowBackend(FakeBackend):
    """A model that takes `seconds` a token."""

    def __init__(self, seconds: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.seconds = seconds

    def forward(self, ids: np.ndarray, logits: int = 1) -> np.ndarray:
        if self.seconds:
            time.sleep(self.seconds * len(ids))
        return super().forward(ids, logits)

    def save(self, slot: int, length: int) -> list[np.ndarray]:
        return [np.array(self.sequences[slot][:length])]

    def load(self, slot: int, length: int, arrays: Sequence[np.ndarray]) -> None:
        self.sequences[slot] = arrays[0].tolist()

    def row(self) -> np.ndarray:
        row = super().row()
        row[0] = -9.0  # answers end where they are told to
        return row


def tiny_llm(
    folder: Path,
    slots: int = 2,
    seconds: float = 0.0,
    context: int = CONTEXT,
    template: str = CHATML,
    drafted: bool = False,
) -> LLM:
    """Random but reproducible answers of bytes, through a real tokenizer and template."""
    write_folder(folder, byte_level())
    backend = SlowBackend(seconds, vocab=VOCABULARY, context=context, slots=slots)
    maxgram = MaxGram()
    speculator = Speculator(Auto(Schedule(), [maxgram]), [maxgram]) if drafted else None
    return LLM.of(backend, load_tokenizer(folder), template, speculator)


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    url: str
    shop: Shop

    @property
    def host(self) -> Host:
        return self.shop.first

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **more)

    def events(self, path: str, body: Any) -> list[dict[str, Any]]:
        """The data of server-sent events; `[DONE]` must end them and is left out."""
        with httpx.stream("POST", self.url + path, json={**body, "stream": True}, timeout=60) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            data = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
        assert data.pop() == "[DONE]"
        return [json.loads(one) for one in data]

    def lines(self, path: str, body: Any) -> list[dict[str, Any]]:
        """The objects of a response that is NDJSON."""
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in response.text.splitlines()]

    def until_idle(self, seconds: float = 10) -> float:
        """Seconds until no answer waits or runs."""
        started = time.monotonic()
        while self.host.orders or not self.host.idle:
            assert time.monotonic() - started < seconds
            time.sleep(0.005)
        return time.monotonic() - started


@contextlib.contextmanager
def serving(*makers: Callable[[], LLM], access: Access | None = None, **given: Any) -> Iterator[Served]:
    """A server with the options `given`, of a model a maker."""
    options = ServeOptions(**{"port": 0, "parallel": 2, **given})
    folder = None if options.cache_dir is None else Path(options.cache_dir)
    opening = Opening(
        BackendOptions(batch=options.parallel),
        keep_seconds=options.sleep_idle_seconds,
        cache_bytes=(64 if options.cache_ram is None else options.cache_ram) << 20,
        cache_folder=folder,
    )
    about = Manifest("made up", "llama", "edge", VOCABULARY, CONTEXT, 1000, 4.5, {})
    names = [NAME, "other", "third"]
    hosts = {name: Host(name, about, opening, make) for name, make in zip(names, makers, strict=False)}
    engine = Engine(hosts.values())
    shop = Shop(hosts, engine, Desk(engine, options.max_queue), options, ThreadPoolExecutor(2))
    server, sockets = server_of(application(shop, access or Access()), options), listen(options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets}, daemon=True)
    url = addresses(sockets, options)[0]
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield Served(url, shop)
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()
