"""One thread that owns all models: it opens and closes them and turns their schedulers; others ask and look.

An `Order` is what one request wants: answers to one or more prompts. Its bell rings, at most once until
somebody has looked, when something of it changed; what changed stands in the answers themselves, so a slow
reader costs nothing and nothing is lost. The thread sleeps on a condition while nobody wants anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from flatlm.runtime.errors import ResourceError
from flatlm.runtime.generation.answer import Answer, Completion, Prompt
from flatlm.runtime.server.hosts import Host

T = TypeVar("T")


class Bell:
    """Rung on the engine's thread, heard by one task of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._event, self._rung = loop, asyncio.Event(), False

    def ring(self) -> None:
        if not self._rung:
            self._rung = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                self._loop.call_soon_threadsafe(self._event.set)

    async def heard(self, seconds: float) -> bool:
        """Wait for a ring; False where none came in that time. Look after this, not before."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        self._event.clear()
        self._rung = False
        return True


class Ticket:
    """One answer of an order, on both sides: the engine writes, the event loop reads."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.answer: Answer | None = None  # None: the engine has not seen it yet
        self.error: BaseException | None = None  # why it came to nothing
        self.cancelled = False
        self._seen: tuple[int, int, bool] = (0, 0, False)

    @property
    def ended(self) -> bool:
        return self.error is not None or (self.answer is not None and self.answer.ended)

    @property
    def completion(self) -> Completion:
        """What there is; it has begun."""
        assert self.answer is not None
        return self.answer.completion

    def changed(self) -> bool:
        """Whether anything of it is new since this was asked last; the engine asks."""
        answer = self.answer
        if answer is None:
            return self.error is not None
        now = (len(answer.pieces), answer.sequence.read if answer.reading else 0, self.ended)
        before, self._seen = self._seen, now
        return now != before


class Order:
    """The answers that one request wants, side by side."""

    def __init__(self, host: Host, prompts: Sequence[Prompt], bell: Bell) -> None:
        self.host, self.bell = host, bell
        self.tickets = [Ticket(prompt.seeded()) for prompt in prompts]
        self.asked = time.monotonic()

    @property
    def ended(self) -> bool:
        return all(ticket.ended for ticket in self.tickets)


class Engine:
    """The thread. `call` has it do something; `submit` and `cancel` are for orders. Start it, stop it."""

    def __init__(self, hosts: Iterable[Host]) -> None:
        self.hosts = list(hosts)
        self._calls: deque[Callable[[], None]] = deque()
        self._orders: list[Order] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="flatlm-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End all answers after the step that runs, close all models."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Have the thread do `work` between two steps; from any thread."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001  it belongs to who asked
                done.set_exception(error)

        with self._wake:
            if self._stopping:
                done.set_exception(ResourceError("the server is stopping"))
                return done
            self._calls.append(run)
            self._wake.notify()
        return done

    def open(self, host: Host) -> None:
        """Have it loaded, in the place of idle ones where memory is short. On the engine's thread."""
        while not host.loaded:
            try:
                host.open()
            except ResourceError:
                others = [one for one in self.hosts if one.loaded and one.idle]
                if not others:
                    raise
                min(others, key=lambda one: one.used).close()

    def submit(self, order: Order) -> None:
        """Begin with all its answers as slots are free. Errors stand in the tickets."""

        def begin() -> None:
            self._orders.append(order)
            for ticket in order.tickets:
                if ticket.cancelled:
                    ticket.error = asyncio.CancelledError()
                    continue
                try:
                    self.open(order.host)
                    ticket.answer = order.host.scheduler.submit(ticket.prompt)
                except Exception as error:  # noqa: BLE001  of this request, whatever it is
                    ticket.error = error
            self._tell(order)

        order.host.orders.append(order)
        self.call(begin).add_done_callback(lambda done: self._refused(order, done))

    def _refused(self, order: Order, done: Future[None]) -> None:
        if error := done.exception():
            for ticket in order.tickets:
                ticket.error = ticket.error or error
            self._leave(order)
            order.bell.ring()

    def cancel(self, order: Order) -> None:
        """Nobody wants it any more. From any thread, at any time."""
        for ticket in order.tickets:
            ticket.cancelled = True
            if ticket.answer is not None and not ticket.answer.ended:
                order.host.cancel(ticket.answer)
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        while self._awaited():
            while self._calls:
                self._calls.popleft()()
            for host in self.hosts:
                if host.loaded and host.scheduler.count:
                    self._step(host)
            self._rest()
        for host in self.hosts:
            host.close()
        for order in list(self._orders):
            for ticket in order.tickets:
                if not ticket.ended:
                    ticket.error = ResourceError("the server is stopping")
            self._tell(order)

    def _awaited(self) -> bool:
        """Wait until there is something to do; False: stop."""
        with self._wake:
            while not (self._stopping or self._calls or any(not host.idle for host in self.hosts)):
                times = [time_left for host in self.hosts if (time_left := host.until_rest()) is not None]
                if times and min(times) <= 0:
                    break
                self._wake.wait(min(times, default=None))
            return not self._stopping

    def _step(self, host: Host) -> None:
        orders = [order for order in self._orders if order.host is host]
        try:
            host.scheduler.step()
        except Exception as error:  # noqa: BLE001  all its answers have ended, the server goes on
            for order in orders:
                for ticket in order.tickets:
                    if ticket.answer is not None and ticket.answer.reason in ("", "interrupted"):
                        ticket.error = error
        for order in orders:
            self._tell(order)

    def _tell(self, order: Order) -> None:
        for ticket in order.tickets:
            if ticket.cancelled and ticket.answer is not None and not ticket.answer.ended:
                order.host.cancel(ticket.answer)  # it was cancelled while it began
        changed = [ticket.changed() for ticket in order.tickets]  # each is asked
        if any(changed):
            order.bell.ring()
        if order.ended:
            self._leave(order)

    def _leave(self, order: Order) -> None:
        if order in self._orders:
            self._orders.remove(order)
        order.host.left(order)

    def _rest(self) -> None:
        """What is done between steps when a model has nothing to do: keep prefixes, close what slept."""
        for host in self.hosts:
            host.rest()
