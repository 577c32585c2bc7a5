"""Answers for whoever reads them: one as a stream of pieces of text, many as they end.

Both only turn the scheduler's steps; a whole answer is a fold over its stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from flatlm.runtime.errors import FlatlmError, UsageError
from flatlm.runtime.generation.answer import Answer, Completion, Prompt

if TYPE_CHECKING:
    from flatlm.runtime.generation.scheduler import Scheduler

Check = Callable[[], None]  # raises where the answers belong to the past: another was begun, the model closed


def superseded() -> UsageError:
    """What a reader is told whose answers were ended by newer ones."""
    return UsageError(
        "another answer was begun while this one was being read, and ended it: read it to its end first, "
        "use answer_many for several, or open the model a second time"
    )


class Stream(Iterator[str]):
    """An answer as it is written: iterate for pieces of text; `completion` is what there is at any time."""

    def __init__(self, scheduler: Scheduler, answer: Answer, check: Check) -> None:
        self._scheduler, self._answer, self._check = scheduler, answer, check
        self._given = 0  # pieces
        self._closed = False
        self.source = ""  # the drafter whose token the last piece came with; empty: the model itself

    def __next__(self) -> str:
        answer = self._answer
        while not self._closed and self._given == len(answer.pieces):
            if not answer.ended:
                self._check()
                self._scheduler.step()
                continue
            if answer.reason == "interrupted":
                self._check()
            self._closed = True
        if self._closed:
            raise StopIteration
        piece, self.source = answer.pieces[self._given]
        self._given += 1
        return piece

    def run(self) -> Completion:
        """Take all pieces and return the whole."""
        for _ in self:
            pass
        return self.completion

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """What the model was sent."""
        return tuple(self._answer.prompt.ids)

    def cancel(self) -> None:
        """End the answer at its next step, from any thread; what was produced stays in `completion`."""
        self._scheduler.cancel(self._answer)

    def close(self) -> None:
        """End the answer here; what was produced stays in `completion`."""
        self._closed = True
        if not self._answer.ended:
            self._scheduler.remove(self._answer)

    @property
    def completion(self) -> Completion:
        """The answer so far; text that was held back belongs to it."""
        return self._answer.completion


def answer_many(
    scheduler: Scheduler, prompts: Iterable[Prompt], together: int, check: Check
) -> Iterator[tuple[int, Completion]]:
    """(number of the prompt, its answer) as answers end, `together` of them written side by side.

    Prompts are taken as there is room for them. Raises what `Scheduler.submit` raises of a prompt, after the
    answers that were being written have ended.
    """
    coming, open_, refused = enumerate(prompts), dict[Answer, int](), list[FlatlmError]()
    try:
        while True:
            while len(open_) < together and not refused:
                index, prompt = next(coming, (-1, None))
                if prompt is None:
                    break
                check()
                try:
                    open_[scheduler.submit(prompt)] = index
                except FlatlmError as error:  # the last: those before it end first
                    refused.append(error)
            if not open_:
                break
            check()
            if not any(answer.ended for answer in open_):  # who wants no token is answered at once
                scheduler.step()
            for answer in [answer for answer in open_ if answer.ended]:
                yield open_.pop(answer), answer.completion
            if open_:
                check()
    finally:
        for answer in open_:
            if not answer.ended:
                scheduler.remove(answer)
    if refused:
        raise refused[0]
