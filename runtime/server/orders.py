"""Orders as their readers see them: what is new of each answer, or the whole at once; and cost as clients
read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from flatlm.runtime.generation.answer import Completion, Timings
from flatlm.runtime.generation.logprobs import TokenLogprob
from flatlm.runtime.server.engine import Engine
from flatlm.runtime.server.failures import Busy
from flatlm.runtime.server.hosts import Host
from flatlm.runtime.server.tickets import Asked, Bell, Order, Ticket
from flatlm.runtime.server.wire import SILENCE
from flatlm.runtime.text.tools.deltas import CallDelta, Content, Delta
from flatlm.runtime.text.tools.reader import Reader


@dataclass(frozen=True)
class News:
    """What is new of an answer. `read`: (held before, read so far, all) of its prompt while that is read."""

    index: int
    deltas: Sequence[tuple[Delta, str]] = ()  # and the drafter whose token completed each
    start: int = 0  # characters of the answer before them
    logprobs: Sequence[TokenLogprob] = ()  # where they were asked for; not one for each delta
    ended: bool = False
    read: tuple[int, int, int] | None = None


async def follow(order: Order) -> AsyncIterator[News | None]:
    """What happens to an order until it has ended; None where nothing did for SILENCE seconds.

    An error of an answer is raised.
    """
    given, told, ended = [0] * len(order.tickets), [-1] * len(order.tickets), set[int]()
    rated, shown = [0] * len(order.tickets), [0] * len(order.tickets)
    readers = [reader_of(ticket) for ticket in order.tickets]
    while len(ended) < len(order.tickets):
        if not await order.bell.heard(SILENCE):
            yield None
        for index, ticket in enumerate(order.tickets):
            if index in ended:
                continue
            over, answer = ticket.ended, ticket.answer  # in this order: what comes after is seen next time
            if ticket.error is not None:
                raise ticket.error
            if answer is None:
                continue
            read = answer.sequence.read
            if answer.reading and not over and read != told[index]:
                told[index] = read
                yield News(index, read=(answer.reused, read, len(answer.prompt.ids)))
            pieces = answer.pieces[given[index] :]
            given[index] += len(pieces)
            if over:
                ended.add(index)
            if pieces or over:
                reader = readers[index]
                deltas = [(delta, source) for text, source in pieces for delta in reader.push(text)]
                deltas += [(delta, "") for delta in reader.finish()] if over else []
                certain = len(answer.text.tokens) if answer.text is not None else 0
                logprobs = [] if ticket.silent else answer.logprobs[rated[index] : certain]
                rated[index] += len(logprobs)
                yield News(index, [] if ticket.silent else deltas, shown[index], logprobs, over)
                shown[index] += sum(len(text) for text, _ in pieces)


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
        self.refused = 0

    def order(self, host: Host, asks: Sequence[Asked]) -> Order:
        """Begin answers. Busy where too many wait already."""
        waiting = sum(len(order.tickets) for order in host.orders) - host.slots
        if host.orders and waiting + len(asks) > self.most_waiting:
            self.refused += 1
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
