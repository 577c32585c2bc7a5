"""What one request wants, on both sides: the engine's thread writes, a task of the event loop reads.

The bell of an order rings, at most once until somebody has looked, when something of it changed. What changed
stands in the answers themselves, so a slow reader costs nothing and nothing is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flatlm.runtime.generation.answer import Answer, Completion, Prompt


@dataclass(frozen=True)
class Asked:
    """One prompt of a request. `silent`: only its prompt is to be read, what is written is not told."""

    prompt: Prompt
    silent: bool = False


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

    def __init__(self, asked: Asked) -> None:
        self.prompt, self.silent = asked.prompt.seeded(), asked.silent
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
        found = self.answer.completion
        if not self.silent:
            return found
        timings = replace(found.timings, generated_tokens=0)
        return replace(found, text="", tokens=(), logprobs=(), timings=timings)

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

    def __init__(self, asks: Sequence[Asked], bell: Bell) -> None:
        self.bell = bell
        self.tickets = [Ticket(asked) for asked in asks]

    @property
    def ended(self) -> bool:
        return all(ticket.ended for ticket in self.tickets)

    def stopped_by(self, index: int) -> str | None:
        """The stop text that an answer ended before; None: none, it ended otherwise."""
        answer = self.tickets[index].answer
        return None if answer is None or answer.text is None else answer.text.stopped_by

    def ids(self, index: int) -> list[int]:
        """Prompt and answer."""
        answer = self.tickets[index].answer
        return [] if answer is None else list(answer.ids)

    def prompt_tokens(self, index: int) -> int:
        return len(self.tickets[index].prompt.ids)

    def fail(self, error: BaseException) -> None:
        """Nothing more comes of what has not ended, because of `error`."""
        for ticket in self.tickets:
            if ticket.answer is None or ticket.answer.reason in ("", "interrupted"):
                ticket.error = ticket.error or error
