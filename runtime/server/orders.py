"""Orders as their readers see them: what is new of each answer, or the whole at once; and cost as clients
read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from flatlm.runtime.generation.answer import Answer, Completion, Timings
from flatlm.runtime.generation.logprobs import TokenLogprob
from flatlm.runtime.server.engine import Engine
from flatlm.runtime.server.failures import Busy
from flatlm.runtime.server.hosts import Host
from flatlm.runtime.server.tickets import Asked, Bell, Order, Ticket
from flatlm.runtime.server.wire import SILENCE
from flatlm.runtime.text.tools.deltas import CallDelta, Content, Delta
from flatlm.runtime.text.tools.reader import Reader


class Said(NamedTuple):
    """A piece of an answer, the tokens that it is complete with, and where it stands."""

    delta: Delta
    source: str = ""  # the drafter whose token completed it
    start: int = 0  # characters of the answer before it
    ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprob] = ()  # of `ids`, where they were asked for


@dataclass(frozen=True)
class News:
    """What is new of an answer. `read`: (held before, read so far, all) of its prompt while that is read."""

    index: int
    said: Sequence[Said] = ()
    ended: bool = False
    read: tuple[int, int, int] | None = None


class Watch:
    """How much of one answer its reader was told."""

    def __init__(self, index: int, ticket: Ticket) -> None:
        self._index, self._ticket = index, ticket
        self._reader = reader_of(ticket)
        self._read, self._pieces, self._tokens, self._shown = -1, 0, 0, 0
        self.ended = False

    def news(self) -> Iterator[News]:
        """What is new. An error of the answer is raised."""
        ticket = self._ticket
        over, answer = ticket.ended, ticket.answer  # in this order: what comes after is seen next time
        if ticket.error is not None:
            raise ticket.error
        if answer is None:
            return
        yield from self._reading(answer)
        pieces = answer.pieces[self._pieces :]
        said = [one for place, piece in enumerate(pieces) for one in self._said(answer, place, piece)]
        self._pieces += len(pieces)
        if over:
            said += [Said(delta, start=self._shown) for delta in self._reader.finish()]
            rest = self._taken(answer, None)
            said += [Said(Content(""), "", self._shown, *rest)] if rest[1] else []
        self.ended = over
        if said or over:
            yield News(self._index, [] if ticket.silent else said, over)

    def _reading(self, answer: Answer) -> Iterator[News]:
        """How far the prompt is read: first what was held, last all."""
        total, begun = len(answer.prompt.ids), answer.sequence.slot >= 0 or answer.written > 0
        if self._read < 0 and begun:
            self._read = answer.reused
            yield News(self._index, read=(answer.reused, answer.reused, total))
        now = min(answer.sequence.read, total) if answer.reading else total
        if 0 <= self._read < now:
            self._read = now
            yield News(self._index, read=(answer.reused, now, total))

    def _said(self, answer: Answer, place: int, piece: tuple[str, str]) -> list[Said]:
        text, source = piece
        deltas = self._reader.push(text)
        found = []
        if deltas:
            taken = self._taken(answer, answer.marks[self._pieces + place])
            found = [Said(deltas[0], source, self._shown, *taken)]
            found += [Said(delta, source, self._shown) for delta in deltas[1:]]
        self._shown += len(text)
        return found

    def _taken(self, answer: Answer, mark: int | None) -> tuple[list[int], list[TokenLogprob]]:
        """The ids up to the `mark`-th that were not told yet, and their log probabilities."""
        if answer.text is None:
            return [], []
        ids = answer.text.tokens[self._tokens : mark]
        logprobs = answer.logprobs[self._tokens : self._tokens + len(ids)]
        self._tokens += len(ids)
        return ids, logprobs


async def follow(order: Order) -> AsyncIterator[News | None]:
    """What happens to an order until it has ended; None where nothing did for SILENCE seconds.

    An error of an answer is raised.
    """
    watches = [Watch(index, ticket) for index, ticket in enumerate(order.tickets)]
    while not all(watch.ended for watch in watches):
        if not await order.bell.heard(SILENCE):
            yield None
        for watch in watches:
            if not watch.ended:
                for news in watch.news():
                    yield news


class Plain:
    """Reads an answer that is text and nothing else."""

    def push(self, text: str) -> list[Delta]:
        return [Content(text)]

    def finish(self) -> list[Delta]:
        return []


def part_of(delta: Delta) -> object:
    """What it is a piece of: the text, the thoughts, or a call."""
    return delta.index if isinstance(delta, CallDelta) else type(delta)


def reader_of(ticket: Ticket) -> Reader | Plain:
    """What tells the parts of its answer apart as they come."""
    reading = ticket.prompt.reading
    return Plain() if reading is None else reading.reader()


async def completed(order: Order) -> list[Completion]:
    """All answers of an order."""
    async for _ in follow(order):
        pass
    return [ticket.completion for ticket in order.tickets]


class Desk:
    """Takes orders, as many as may wait."""

    def __init__(self, engine: Engine, most_waiting: int) -> None:
        self.engine, self.most_waiting = engine, most_waiting

    def order(self, host: Host, asks: Sequence[Asked]) -> Order:
        """Begin answers. Busy where too many wait already."""
        waiting = sum(len(order.tickets) for order in host.orders) - host.slots
        if host.orders and waiting + len(asks) > self.most_waiting:
            raise Busy(f"{waiting} answers wait for {host.slots} slots already: try again later")
        order = Order(asks, Bell(asyncio.get_running_loop()))
        self.engine.submit(host, order)
        return order


def usage(completions: Sequence[Completion]) -> dict[str, Any]:
    """OpenAI's; answers to one prompt read it once."""
    timings = [completion.timings for completion in completions]
    prompt = timings[0].prompt_tokens
    written = sum(one.generated_tokens for one in timings)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": timings[0].reused_tokens},
    }


def timings_of(timings: Timings) -> dict[str, Any]:
    """llama.cpp's: milliseconds and rates, none of them null, infinite or negative."""
    read, written = timings.prompt_tokens - timings.reused_tokens, timings.generated_tokens
    found = {
        "cache_n": timings.reused_tokens,
        "prompt_n": read,
        "prompt_ms": 1e3 * timings.prefill_seconds,
        "prompt_per_token_ms": 1e3 * timings.prefill_seconds / max(read, 1),
        "prompt_per_second": timings.prefill_rate,
        "predicted_n": written,
        "predicted_ms": 1e3 * timings.decode_seconds,
        "predicted_per_token_ms": 1e3 * timings.decode_seconds / max(written - 1, 1),
        "predicted_per_second": timings.decode_rate,
    }
    if timings.drafting is not None:
        drafting = timings.drafting
        found |= {"draft_n": drafting.drafted, "draft_n_accepted": drafting.accepted}
    return found
