"""Several answers at once: sequences that join and leave between any two steps, over the slots of a backend.

A step gives every sequence that writes its next token and reads, beside them, a chunk of one prompt. A new
prompt begins with what some slot holds of it, whoever computed that: it is copied. Slots that are free keep
what they hold until they are needed, the one that ended first going first. Neither changes an answer: a row
of logits depends on its own sequence alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from flatlm.runtime.backends import Segment
from flatlm.runtime.generation import engine
from flatlm.runtime.generation.sampler import Sampler

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend


@dataclass(eq=False)
class Writer:
    """A prompt and what follows it: as `engine.generate`, an id for each step once the prompt is read.

    Seconds are a step's, shared out by its rows, so that those of all writers add up to the time that passed.
    """

    prompt: Sequence[int]
    sampler: Sampler
    n: int = -1
    stop_ids: Collection[int] = frozenset()
    slot: int = -1  # −1: it waits, or has ended
    reused: int = 0  # tokens of the prompt that some slot held
    read_seconds: float = 0.0
    write_seconds: float = 0.0
    ended: bool = False
    ids: list[int] = field(default_factory=list)  # prompt and answer
    read: int = 0  # of `ids`, those in the cache
    left: int = 0  # ids that may still be written

    @property
    def reading(self) -> bool:
        """Whether its prompt is not all in the cache."""
        return self.read < len(self.prompt)


class Batch:
    """The sequences of `backend`. `held` are, by slot, the ids that its cache consists of."""

    def __init__(self, backend: Backend, chunk: int = engine.PREFILL_CHUNK) -> None:
        self.held: list[list[int]] = [[] for _ in range(backend.slots)]
        self._backend, self._chunk = backend, chunk
        self._waiting: deque[Writer] = deque()
        self._running: list[Writer] = []
        self._used = [0] * backend.slots  # the step in which a slot became free
        self._steps = 0

    @property
    def count(self) -> int:
        """Writers that wait or run."""
        return len(self._waiting) + len(self._running)

    def add(self, writer: Writer) -> None:
        """Let `writer` (with n other than 0) begin as soon as a slot is free.

        ContextError, TokenizerError or UsageError where its prompt cannot be read.
        """
        engine.check_prompt(self._backend, writer.prompt)
        writer.ids = list(writer.prompt)
        room = self._backend.context - len(writer.ids) + 1  # the last id is not fed back
        writer.left = room if writer.n < 0 else min(writer.n, room)
        self._waiting.append(writer)

    def remove(self, writer: Writer) -> None:
        """End `writer` where it stands; its slot is free for others."""
        writer.ended = True
        if writer in self._running:
            self._running.remove(writer)
            self._used[writer.slot], writer.slot = self._steps, -1
        elif writer in self._waiting:
            self._waiting.remove(writer)

    def clear(self) -> None:
        """End all."""
        for writer in (*self._running, *self._waiting):
            self.remove(writer)

    def step(self) -> list[tuple[Writer, int]]:
        """One step of the backend: the ids that were written, a stop id last of its writer.

        After an exception all writers have ended.
        """
        started = time.perf_counter()
        self._steps += 1
        self._admit()
        try:
            segments = [self._segment(writer) for writer in self._running]
            rows = self._backend.forward_many(segments)
            found = [
                (writer, self._advance(writer, segment, logits))
                for writer, segment, logits in zip(tuple(self._running), segments, rows, strict=True)
            ]
        except BaseException:
            self.clear()
            raise
        total = sum(len(segment.ids) for segment in segments)
        seconds = (time.perf_counter() - started) / max(total, 1)
        for (writer, _), segment in zip(found, segments, strict=True):
            if len(writer.ids) - len(writer.prompt) <= 1:
                writer.read_seconds += seconds * len(segment.ids)
            else:
                writer.write_seconds += seconds * len(segment.ids)
        return [(writer, number) for writer, number in found if number is not None]

    def _segment(self, writer: Writer) -> Segment:
        """What a writer feeds in this step: a chunk of its prompt, or its last id."""
        ids = writer.ids[writer.read : writer.read + self._chunk]
        return Segment(writer.slot, ids, int(writer.read + len(ids) == len(writer.ids)))

    def _advance(self, writer: Writer, segment: Segment, logits: np.ndarray) -> int | None:
        """The id that comes of a writer's logits; None while it reads."""
        self.held[writer.slot].extend(segment.ids)
        writer.read += len(segment.ids)
        if not len(logits):
            return None
        number = writer.sampler(logits[-1], writer.ids)
        writer.ids.append(number)
        writer.left -= 1
        if number in writer.stop_ids or writer.left == 0:
            self.remove(writer)
        return number

    def _admit(self) -> None:
        """Begin with the next prompt. One is read at a time: the one after it may begin as it does."""
        if (
            self._waiting
            and len(self._running) < len(self.held)
            and not any(w.reading for w in self._running)
        ):
            writer = self._waiting.popleft()
            writer.slot, writer.reused = self._place(writer.ids)
            writer.read = writer.reused
            self._running.append(writer)

    def _place(self, prompt: Sequence[int]) -> tuple[int, int]:
        """A free slot that holds as much of the start of `prompt` as any slot does, and how much that is.

        At least the last id is left to be read: its logits are needed.
        """
        known = [
            min(engine.common_start(held, prompt), position, len(prompt) - 1)
            for held, position in zip(self.held, self._backend.positions, strict=True)
        ]
        most = max(known)
        busy = {writer.slot for writer in self._running}
        free = [slot for slot in range(len(self.held)) if slot not in busy]
        own = [slot for slot in free if known[slot] == most == len(self.held[slot])]  # nothing is lost there
        slot = own[0] if own else min(free, key=lambda slot: self._used[slot])
        if known[slot] < most:
            source = known.index(most)
            self._backend.copy(source, slot, most)
            self.held[slot][:] = self.held[source][:most]
        else:
            self._backend.truncate(most, slot)
            del self.held[slot][most:]
        return slot, most
