"""One thread that owns all models: it opens and closes them and turns their schedulers; others ask and look.

The thread sleeps on a condition while nobody wants anything. What an order is and how its reader learns what
happened, `tickets` says.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TypeVar

from flatlm.runtime.errors import ResourceError
from flatlm.runtime.server.hosts import Host
from flatlm.runtime.server.tickets import Order

T = TypeVar("T")


class Engine:
    """The thread. `call` has it do something; `submit` and `cancel` are for orders. Start it, stop it."""

    def __init__(self, hosts: Iterable[Host]) -> None:
        self.hosts = list(hosts)
        self._calls: deque[Callable[[], None]] = deque()
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

    def look(self) -> None:
        """Something may have changed; from any thread."""
        with self._wake:
            self._wake.notify()

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

    def submit(self, host: Host, order: Order) -> None:
        """Begin with all its answers as slots are free. Errors stand in the tickets."""

        def begin() -> None:
            for ticket in order.tickets:
                if ticket.cancelled or ticket.error:
                    ticket.error = ticket.error or asyncio.CancelledError()
                    continue
                try:
                    self.open(host)
                    ticket.answer = host.scheduler.submit(ticket.prompt)
                except Exception as error:  # noqa: BLE001  of this request, whatever it is
                    ticket.error = error
            self._tell(host, order)

        def refused(done: Future[None]) -> None:
            if error := done.exception():
                order.fail(error)
                self._tell(host, order)

        host.orders.append(order)
        self.call(begin).add_done_callback(refused)

    def cancel(self, order: Order) -> None:
        """Nobody wants it any more. From any thread, at any time."""
        for ticket in order.tickets:
            ticket.cancelled = True
        for host in self.hosts:
            if order in host.orders:
                host.cancel(order)
        self.look()

    def _run(self) -> None:
        while self._awaited():
            while self._calls:
                self._calls.popleft()()
            for host in self.hosts:
                if host.busy:
                    self._step(host)
                host.rest()
        for host in self.hosts:
            host.close()
            for order in list(host.orders):
                order.fail(ResourceError("the server is stopping"))
                self._tell(host, order)

    def _awaited(self) -> bool:
        """Wait until there is something to do; False: stop."""
        with self._wake:
            while not (self._stopping or self._calls or any(host.busy for host in self.hosts)):
                times = [left for host in self.hosts if (left := host.until_rest()) is not None]
                if times and min(times) <= 0:
                    break
                self._wake.wait(min(times, default=None))
            return not self._stopping

    def _step(self, host: Host) -> None:
        orders = list(host.orders)
        try:
            host.scheduler.step()
        except Exception as error:  # noqa: BLE001  all its answers have ended, the server goes on
            for order in orders:
                order.fail(error)
        for order in orders:
            self._tell(host, order)

    @staticmethod
    def _tell(host: Host, order: Order) -> None:
        if any(ticket.cancelled for ticket in order.tickets):
            host.cancel(order)  # it was cancelled while it began
        changed = [ticket.changed() for ticket in order.tickets]  # each is asked
        if order.ended:
            host.left(order)
        if any(changed):
            order.bell.ring()
