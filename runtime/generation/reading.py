"""Prompts that are read beside each other: whose chunk is next, how long it is, and who had better wait.

A step reads a chunk of one prompt. The one with the least left goes first, so a short question is not behind
a long document; who was passed over often enough goes before it, so nobody waits for ever. Results are the
same in any order: a row depends on its own sequence alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from flatlm.runtime.generation.sequence import PREFILL_CHUNK, common_start

if TYPE_CHECKING:
    from flatlm.runtime.generation.answer import Answer

PATIENCE = 8  # chunks of others that a prompt lets pass; a long one gets a ninth of the reading at least
LEAST_CHUNK = 16  # tokens; with fewer a pass costs nearly what one token costs


def next_reader(readers: Sequence[Answer]) -> Answer:
    """Whose chunk is read next. The others count that they were passed over."""
    patient = max(readers, key=lambda answer: answer.passed)
    chosen = patient if patient.passed >= PATIENCE else min(readers, key=_unread)
    for answer in readers:
        answer.passed += 1
    chosen.passed = 0
    return chosen


def _unread(answer: Answer) -> int:
    return len(answer.sequence.ids) - answer.sequence.read


def awaits(answer: Answer, readers: Iterable[Answer], known: int) -> bool:
    """Whether one of `readers` will soon have read more of the prompt of `answer` than the `known` ids that
    some slot holds: then it begins with those, and nothing is computed twice.
    """
    ids = answer.sequence.ids
    for reader in readers:
        shared = min(common_start(reader.sequence.ids, ids), len(ids) - 1)
        if shared > max(known, reader.sequence.read):
            return True
    return False


class ChunkSize:
    """How many tokens of a prompt a step reads: `most`, fewer where that takes longer than `seconds`.

    A step cannot be stopped, so it is what a cancelled prompt and everyone who writes wait for.
    """

    def __init__(self, most: int = PREFILL_CHUNK, seconds: float | None = None) -> None:
        self.most, self.seconds, self.tokens = most, seconds, most

    def within(self, seconds: float) -> None:
        """From now on a chunk takes no longer than that; the first ones are short, for nothing is known."""
        self.seconds, self.tokens = seconds, min(self.most, 2 * LEAST_CHUNK)

    def measured(self, rows: int, seconds: float) -> None:
        """A step that read a chunk computed `rows` rows in that time."""
        if self.seconds is None or seconds <= 0:
            return
        fitting = int(self.seconds * rows / seconds) // LEAST_CHUNK * LEAST_CHUNK
        self.tokens = min(self.most, max(LEAST_CHUNK, fitting))
