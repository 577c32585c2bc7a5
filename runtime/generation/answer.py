"""What is asked and what comes of it: a prompt as ids, the answer's text as its ids come, what it cost."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flatlm.runtime.options import SamplingOptions
from flatlm.runtime.text.stop_text import StopText
from flatlm.runtime.text.tokenizer import Detokenizer, Tokenizer

if TYPE_CHECKING:
    from flatlm.runtime.drafting.speculator import DraftTimings

SHOWN = 16  # ids of a continued prompt that the text of its answer depends on


@dataclass(frozen=True)
class Prompt:
    """Ids to answer. `continues`: the answer's text goes on where the prompt's ends, space too."""

    ids: Sequence[int]
    options: SamplingOptions
    continues: bool = False

    def seeded(self) -> Prompt:
        """Itself with a seed, where its options leave that open."""
        if self.options.seed >= 0:
            return self
        return replace(self, options=replace(self.options, seed=secrets.randbits(32)))


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
    """An answer. `finish_reason`: stop (end token or stop text), length (n or context), interrupted."""

    text: str
    tokens: tuple[int, ...]  # without the token that ended it
    finish_reason: str
    timings: Timings
    seed: int


class AnswerText:
    """The answer to a prompt as text: ids in, pieces out. It ends at an end token or before a stop text."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt) -> None:
        before = prompt.ids[-SHOWN:] if prompt.continues else ()
        self._detokenizer, self._stop_text = Detokenizer(tokenizer, before), StopText(prompt.options.stop)
        self._end_ids = tokenizer.eos_ids
        self.tokens: list[int] = []  # without the one that ended it
        self.stopped = False

    @property
    def held(self) -> str:
        """Text that may be the start of a stop text."""
        return self._stop_text.held

    def push(self, number: int) -> str:
        """The text that is certain with this id."""
        if number in self._end_ids:
            self.stopped = True
            return ""
        self.tokens.append(number)
        piece = self._stop_text.push(self._detokenizer.push(number))
        self.stopped = self._stop_text.found
        return piece

    def finish(self) -> str:
        """The rest, when no id follows."""
        if self._stop_text.found:
            return ""
        return self._stop_text.push(self._detokenizer.finish()) + self._stop_text.finish()


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 and tokens > 0 else 0.0
