"""What is asked and what comes of it: a prompt as ids; its answer while it is written: ids, text, cost."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from flatlm.runtime.drafting import Rule
from flatlm.runtime.drafting.verify import rule_of
from flatlm.runtime.generation.logprobs import TokenLogprob, logprob_of
from flatlm.runtime.generation.sequence import TokenSequence
from flatlm.runtime.options import SamplingOptions
from flatlm.runtime.progress import Progress
from flatlm.runtime.text.stop_text import StopText
from flatlm.runtime.text.tokenizer import Detokenizer, Tokenizer
from flatlm.runtime.text.tools.deltas import Message, ToolCall
from flatlm.runtime.text.tools.put import Reading

if TYPE_CHECKING:
    import numpy as np

    from flatlm.runtime.drafting.speculator import Drafted, DraftTimings

SHOWN = 16  # ids of a continued prompt that the text of its answer depends on


@dataclass(frozen=True)
class Prompt:
    """Ids to answer. `continues`: the answer's text goes on where the prompt's ends, space too. `reading`:
    how it is told apart from thoughts and calls of tools, where a model writes any.
    """

    ids: Sequence[int]
    options: SamplingOptions
    continues: bool = False
    reading: Reading | None = None

    def seeded(self) -> Prompt:
        """Itself with a seed, where its options leave that open."""
        if self.options.seed >= 0:
            return self
        return replace(self, options=replace(self.options, seed=secrets.randbits(32)))

    def several(self, count: int) -> list[Prompt]:
        """`count` of it that differ in their seeds alone, one after the other: their answers share what is
        read of it.
        """
        first = self.seeded()
        seeds = range(first.options.seed, first.options.seed + count)
        return [replace(first, options=replace(first.options, seed=seed)) for seed in seeds]


@dataclass(frozen=True)
class Timings:
    """What an answer cost. Prefill is the time to the first token; decode that from the first to the last.

    Of answers that were written together it is their share of the time, by rows computed: shares add up.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, held already from this or another answer
    prefill_seconds: float = 0.0
    generated_tokens: int = 0  # with the token that ended the answer
    decode_seconds: float = 0.0
    drafting: DraftTimings | None = None  # None: plain decoding

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens read per second."""
        return _rate(self.prompt_tokens - self.reused_tokens, self.prefill_seconds)

    @property
    def decode_rate(self) -> float:
        """Tokens written per second; the first one belongs to the prefill."""
        return _rate(self.generated_tokens - 1, self.decode_seconds)


@dataclass(frozen=True)
class Completion:
    """An answer. `finish_reason`: stop (end token or stop text), length (n or context), cancelled, or
    interrupted: nobody has read it to its end. `text` is all that was written; `content`, `reasoning` and
    `tool_calls` are its parts.
    """

    text: str
    tokens: tuple[int, ...]  # without the token that ended it
    finish_reason: str
    timings: Timings
    seed: int
    logprobs: tuple[TokenLogprob, ...] = ()  # of `tokens`, where SamplingOptions ask for them
    reading: Reading | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.content

    @functools.cached_property
    def message(self) -> Message:
        """The answer in its parts."""
        return Message(self.text) if self.reading is None else self.reading.message(self.text)

    @property
    def content(self) -> str:
        """What is said to the user."""
        return self.message.content

    @property
    def reasoning(self) -> str:
        """What the model said to itself."""
        return self.message.reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools that it calls."""
        return self.message.tool_calls


class AnswerText:
    """The answer to a prompt as text: ids in, pieces out. It ends at an end token or before a stop text."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt) -> None:
        before = prompt.ids[-SHOWN:] if prompt.continues else ()
        shown = frozenset() if prompt.reading is None else prompt.reading.shown(tokenizer)
        self._detokenizer = Detokenizer(tokenizer, before, shown=shown)
        self._stop_text = StopText(prompt.options.stop)
        self._end_ids = tokenizer.eos_ids
        self.tokens: list[int] = []  # without the one that ended it
        self.stopped = False

    @property
    def held(self) -> str:
        """Text that may be the start of a stop text."""
        return self._stop_text.held

    @property
    def stopped_by(self) -> str | None:
        """The stop text that it ended before."""
        return self._stop_text.found

    def push(self, number: int) -> str:
        """The text that is certain with this id."""
        if number in self._end_ids:
            self.stopped = True
            return ""
        self.tokens.append(number)
        piece = self._stop_text.push(self._detokenizer.push(number))
        self.stopped = self._stop_text.found is not None
        return piece

    def finish(self) -> str:
        """The rest, when no id follows."""
        if self._stop_text.found is not None:
            return ""
        return self._stop_text.push(self._detokenizer.finish()) + self._stop_text.finish()


class Answer:
    """An answer to `prompt` as it is written. It ends after a token of `end_ids`, or where its `text` does.

    `law` says what is written after what; the default is that of the prompt's options. Seconds are those of
    steps, shared out by rows, so that those of all answers add up to the time that passed.
    """

    def __init__(
        self,
        prompt: Prompt,
        end_ids: Collection[int] = frozenset(),
        *,
        text: AnswerText | None = None,
        law: Rule | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.prompt, self.end_ids, self.text, self.progress = prompt, end_ids, text, progress
        self.law = law or rule_of("invariant", prompt.options)
        self.sequence = TokenSequence(list(prompt.ids))
        self.left = prompt.options.n  # ids that may still be written
        self.reused = 0  # tokens of the prompt that some slot held
        self.passed = 0  # chunks of other prompts that were read since one of its own was
        self.read_seconds = self.write_seconds = 0.0
        self.drafted: Drafted | None = None  # what its drafters know and what they did
        self.logprobs: list[TokenLogprob] = []  # of its ids, where its options ask for them
        self.reason = ""  # why it ended
        self.cancelled = False  # it will end before the next step
        self.pieces: list[tuple[str, str]] = []  # of text, and the drafter whose token completed it
        self.marks: list[int] = []  # by piece: how many tokens of the answer it is complete with

    @property
    def ended(self) -> bool:
        return self.reason != ""

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return self.sequence.ids

    @property
    def written(self) -> int:
        """How many ids it has, the one that ended it too."""
        return len(self.sequence.ids) - len(self.prompt.ids)

    @property
    def reading(self) -> bool:
        """Whether its prompt is not all in the state."""
        return self.sequence.read < len(self.prompt.ids)

    def note(self, rows: np.ndarray, ids: Sequence[int]) -> None:
        """`ids` were written by the first of `rows`, logits [n, V]."""
        if (top := self.prompt.options.logprobs) is not None:
            self.logprobs += [logprob_of(row, number, top) for row, number in zip(rows, ids, strict=False)]

    def take(self, ids: list[int]) -> list[int]:
        """`ids` were written: those the text has room for."""
        sequence, text = self.sequence, self.text
        if text is None:
            return ids
        before = len(sequence.ids) - len(ids)
        for count, number in enumerate(ids, start=1):
            if piece := text.push(number):
                self._give(piece, before + count - len(self.prompt.ids))
            if text.stopped:
                del sequence.ids[before + count :]
                del self.logprobs[self.written :]
                sequence.read = min(sequence.read, len(sequence.ids))
                return ids[:count]
        return ids

    def finish(self, reason: str) -> None:
        """It has ended. What its text held back is part of it now."""
        if self.text is not None and not self.ended:
            rest = self.text.finish() if reason in ("stop", "length") else self.text.held
            if rest:
                self._give(rest, self.written)
        self.reason = self.reason or reason

    @property
    def timings(self) -> Timings:
        """Of what there is."""
        return Timings(
            len(self.prompt.ids),
            self.reused,
            self.read_seconds,
            self.written,
            self.write_seconds,
            None if self.drafted is None else self.drafted.timings(),
        )

    @property
    def completion(self) -> Completion:
        """What there is; text that is held back belongs to it."""
        text = "".join(piece for piece, _ in self.pieces)
        tokens: tuple[int, ...] = ()
        if self.text is not None:
            text, tokens = text + ("" if self.ended else self.text.held), tuple(self.text.tokens)
        reason = self.reason or ("cancelled" if self.cancelled else "interrupted")
        logprobs = tuple(self.logprobs[: len(tokens)])
        seed, reading = self.prompt.options.seed, self.prompt.reading
        return Completion(text, tokens, reason, self.timings, seed, logprobs, reading)

    def _give(self, piece: str, count: int) -> None:
        """A piece that is complete with the token `count` of the answer."""
        self.marks.append(count)  # before its piece: who reads from another thread finds it there
        self.pieces.append((piece, "" if self.drafted is None else self.drafted.source_of(count - 1)))


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 and tokens > 0 else 0.0
