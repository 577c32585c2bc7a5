"""The one loop that writes answers, over the slots of a backend: who has one sequence has a batch of one.

A step gives every answer that is written its next tokens and reads, beside them, a chunk of one prompt
(`reading` says whose): each answer says which rows it needs, the backend computes them in one pass, each
takes what its rows say. Answers join and leave between any two steps. None of that changes one: a row of
logits depends on its own sequence alone. Where drafters guess, an answer's rows are its last id and the
guesses after it. It knows neither templates nor files; of texts only that an answer may have one.

One thread drives it: `submit` and `step`. `cancel` may be called from any.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING

from flatlm.runtime.backends import Segment, check_prompt
from flatlm.runtime.drafting.verify import rule_of, verify
from flatlm.runtime.errors import UsageError
from flatlm.runtime.generation.answer import Answer, AnswerText, Prompt
from flatlm.runtime.generation.reading import ChunkSize, awaits, next_reader
from flatlm.runtime.generation.sequence import PREFILL_CHUNK, Slots
from flatlm.runtime.generation.token_options import in_ids
from flatlm.runtime.grammars import grammar_of
from flatlm.runtime.progress import Progress
from flatlm.runtime.text.guidance import Guidance

if TYPE_CHECKING:
    import numpy as np

    from flatlm.runtime.backends import Backend
    from flatlm.runtime.drafting import Guess
    from flatlm.runtime.drafting.speculator import Round, Speculator
    from flatlm.runtime.text.tokenizer import Tokenizer

BUSY = (
    "the model computes for another caller: one thread owns an LLM, and nothing is begun from a progress "
    "callback; open the model a second time, or let one thread do all"
)


class Scheduler:
    """Answers over `backend`, as text where there is a `tokenizer`, drafted where there is a `speculator`."""

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer | None = None,
        speculator: Speculator | None = None,
        draft_rule: str = "invariant",
        chunk: int = PREFILL_CHUNK,
    ) -> None:
        self.slots = Slots(backend)
        self.chunk = ChunkSize(chunk)
        self._backend, self._tokenizer = backend, tokenizer
        self._speculator, self._draft_rule = speculator, draft_rule
        self.guidance = None if tokenizer is None else Guidance(tokenizer, backend.vocab)
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []
        self._cancelled = False  # some answer was
        self._torn = False  # a step neither came to its end nor ended all, being interrupted twice
        self._driven = Lock()

    @property
    def count(self) -> int:
        """Answers that wait or run."""
        return len(self._waiting) + len(self._running)

    @property
    def running(self) -> tuple[Answer, ...]:
        """Answers that have a slot; from any thread."""
        return tuple(self._running)

    def submit(self, prompt: Prompt, progress: Progress | None = None) -> Answer:
        """The answer to `prompt`, which begins as soon as a slot is free. Raises as `add` does."""
        prompt = prompt.seeded()
        rule = "invariant" if self._speculator is None else self._draft_rule
        if self._tokenizer is None or self.guidance is None:
            return self.add(Answer(prompt, law=rule_of(rule, prompt.options), progress=progress))
        prompt = replace(prompt, options=in_ids(prompt.options, self._tokenizer, self._backend.vocab))
        grammar = grammar_of(prompt.options)
        constraint = grammar and self.guidance.constraint(grammar, len(prompt.ids))
        law = rule_of(rule, prompt.options, constraint)
        text = AnswerText(self._tokenizer, prompt)
        return self.add(Answer(prompt, self._tokenizer.eos_ids, text=text, law=law, progress=progress))

    def add(self, answer: Answer) -> Answer:
        """Let it begin as soon as a slot is free; where it wants no token it has ended.

        ContextError, TokenizerError or UsageError where its prompt cannot be read.
        """
        prompt = answer.prompt
        check_prompt(self._backend, prompt.ids)
        room = self._backend.context - len(prompt.ids) + 1  # the last id is not fed back
        answer.left = room if prompt.options.n < 0 else min(prompt.options.n, room)
        with self._turn():
            if answer.left == 0:
                answer.finish("length")
            else:
                self._waiting.append(answer)
        return answer

    def cancel(self, answer: Answer) -> None:
        """End it before the next step, from any thread; what is written of it stays."""
        answer.cancelled = self._cancelled = True

    def remove(self, answer: Answer, reason: str = "interrupted") -> None:
        """End it where it stands; its slot is free for others."""
        with self._turn():
            self._remove(answer, reason)

    def clear(self) -> None:
        """End all."""
        with self._turn():
            self._clear()

    def step(self) -> list[tuple[Answer, list[int]]]:
        """One step of the backend: the answers that go on and the ids that were written of them.

        After an exception all have ended. UsageError where somebody else is at it.
        """
        with self._turn():
            if self._torn:
                self._clear()
            self._torn, started = True, time.perf_counter()
            try:
                if self._cancelled:
                    self._drop_cancelled()
                self._admit()
                found = self._step(self._computed(), started) if self._running else []
            except BaseException:
                self._clear()
                raise
            self._torn = False
            return found

    def write(self, answer: Answer) -> Iterator[int]:
        """The ids of `answer`, which it adds, as they come."""
        self.add(answer)
        while not answer.ended:
            for one, ids in self.step():
                if one is answer:
                    yield from ids

    def _turn(self) -> Lock:
        """To be held while something changes. Two threads that come at the same instant take turns."""
        if self._driven.locked():
            raise UsageError(BUSY)
        return self._driven

    def _step(self, running: list[Answer], started: float) -> list[tuple[Answer, list[int]]]:
        guessed = None if self._speculator is None else self._guessed(self._speculator, running)
        if guessed is None:
            segments = [self.slots.rest(answer.sequence, self.chunk.tokens) for answer in running]
            rows = self._backend.forward_many(segments)
            written = list(map(_next, running, segments, rows))
            if self._speculator is not None:
                self._count_plain(running, written)
        else:
            segments = list(map(self._segment, running, guessed.guesses))
            rows = self._backend.forward_many(segments)
            guessed.read()
            written = list(map(self._verified, running, segments, rows, guessed.guesses))
            guessed.learn(written)
        return self._take(time.perf_counter() - started, running, segments, written)

    @staticmethod
    def _guessed(speculator: Speculator, running: Sequence[Answer]) -> Round | None:
        """Drafts for all; none beside a prompt that is read: each row of such a step costs arithmetic."""
        if any(answer.reading for answer in running):
            return None
        return speculator.propose([(a.drafted, a.sequence.ids, a.left - 1) for a in running if a.drafted])

    @staticmethod
    def _count_plain(running: Sequence[Answer], written: Sequence[list[int]]) -> None:
        """Beside a prompt that is read, tokens come without drafts; the first of an answer counts nowhere."""
        for answer, ids in zip(running, written, strict=True):
            if ids and answer.written > 1 and answer.drafted is not None:
                answer.drafted.count_plain()

    def _segment(self, answer: Answer, guesses: Sequence[Guess]) -> Segment:
        """What is not read of an answer, as a rule its last id, and guesses."""
        if not guesses:
            return self.slots.rest(answer.sequence, self.chunk.tokens)
        return self.slots.unread(answer.sequence, 1 + len(guesses), [guess.token for guess in guesses])

    def _verified(
        self, answer: Answer, segment: Segment, rows: np.ndarray, guesses: Sequence[Guess]
    ) -> list[int]:
        """The ids that come of an answer's rows; what was guessed wrong is forgotten."""
        if not guesses:
            return _next(answer, segment, rows)
        sequence = answer.sequence
        written = verify(rows, guesses, answer.law.judge, sequence.ids, answer.end_ids)
        answer.note(rows, written)
        sequence.ids += written
        sequence.read = len(sequence.ids) - 1
        self.slots.cut_back(sequence)
        return written

    def _take(
        self,
        seconds: float,
        running: Sequence[Answer],
        segments: Sequence[Segment],
        written: Sequence[list[int]],
    ) -> list[tuple[Answer, list[int]]]:
        """A step's seconds and what was written become part of answers, of which some end by it."""
        rows = sum([len(segment.ids) for segment in segments])
        found, each = [], seconds / rows
        if rows >= self.chunk.tokens:
            self.chunk.measured(rows, seconds)
        for answer, segment, ids in zip(running, segments, written, strict=True):
            count = answer.written
            if count > 1:
                answer.write_seconds += each * len(segment.ids)
            else:
                answer.read_seconds += each * len(segment.ids)
            if answer.progress is not None and count == len(ids):  # none before: it read
                done = answer.sequence.read - answer.reused
                answer.progress(done, len(answer.prompt.ids) - answer.reused)
            if ids:
                answer.left -= len(ids)
                found.append((answer, answer.take(ids)))
                stopped = ids[-1] in answer.end_ids or (answer.text is not None and answer.text.stopped)
                if stopped and answer.law.constraint is not None and answer.law.constraint.failed:
                    stopped, answer.left = False, 0  # it is no whole answer
                if stopped or answer.left == 0:
                    self._remove(answer, "stop" if stopped else "length")
        return found

    def _computed(self) -> list[Answer]:
        """The answers of the next step: all that are written, and one whose prompt is read."""
        readers = [answer for answer in self._running if answer.reading]
        if len(readers) < 2:
            return list(self._running)
        reader = next_reader(readers)
        return [answer for answer in self._running if answer is reader or not answer.reading]

    def _drop_cancelled(self) -> None:
        self._cancelled = False
        for answer in [one for one in (*self._running, *self._waiting) if one.cancelled]:
            self._remove(answer, "cancelled")

    def _admit(self) -> None:
        """Begin with those who wait while slots are free; but not with who would read what another is just
        reading. Who comes after it may be first then.
        """
        for answer in list(self._waiting):
            if not self.slots.free():
                return
            readers = [one for one in self._running if one.reading]
            if readers and awaits(answer, readers, max(self.slots.known(answer.sequence.ids))):
                continue
            self._waiting.remove(answer)
            self._running.append(answer)
            self.slots.place(answer.sequence)
            answer.reused = answer.sequence.read
            if self._speculator is not None:
                answer.drafted = self._speculator.begin(answer.law)

    def _remove(self, answer: Answer, reason: str) -> None:
        answer.finish("cancelled" if answer.cancelled and reason == "interrupted" else reason)
        self.slots.leave(answer.sequence)
        if answer.drafted is not None:
            answer.drafted.end()
        if answer in self._running:
            self._running.remove(answer)
        elif answer in self._waiting:
            self._waiting.remove(answer)

    def _clear(self) -> None:
        for answer in (*self._running, *self._waiting):
            self._remove(answer, "interrupted")
        self._torn = False


def _next(answer: Answer, segment: Segment, rows: np.ndarray) -> list[int]:
    """The id that comes of an answer's last row; none while it reads."""
    sequence = answer.sequence
    sequence.read += len(segment.ids)
    if not len(rows):
        return []
    number = answer.law.judge(rows[-1], sequence.ids, None)
    sequence.ids.append(number)
    answer.note(rows[-1:], [number])
    return [number]
