"""What was said so far, and the asking of a model. An answer that was stopped stays in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatlm.runtime import settings
from flatlm.runtime.cli import INTERRUPTED
from flatlm.runtime.commands.common import say
from flatlm.runtime.commands.generate import begins_thinking, summary, write
from flatlm.runtime.commands.talking.screen import Look
from flatlm.runtime.errors import ContextError, TemplateError, UsageError
from flatlm.runtime.options import PromptOptions, SamplingOptions
from flatlm.runtime.progress import ProgressLine
from flatlm.runtime.text.prompt_styles import styled

if TYPE_CHECKING:
    from flatlm.runtime.generation.answer import Completion
    from flatlm.runtime.llm import LLM

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Manner:
    """How questions are put and answers shown."""

    sampling: SamplingOptions
    prompting: PromptOptions
    look: Look
    show_prompt: bool = False


class Conversation:
    """Turns of questions and answers after an opening (the system message, if any)."""

    def __init__(self, llm: LLM, system: str | None, manner: Manner) -> None:
        self._llm = llm
        self.manner = manner
        self.opening: list[Message] = []
        self.system(system)
        self.last: Completion | None = None
        self.clear()

    def clear(self) -> None:
        """Forget all but the opening."""
        self.turns: list[list[Message]] = []
        self.refused: str | None = None  # a question that did not fit
        self.used = 0  # tokens of the context

    def system(self, text: str | None) -> None:
        """What the model is told before everything; None or empty: nothing."""
        self.opening = [{"role": "system", "content": text}] if text else []

    @property
    def context(self) -> int:
        """Tokens that fit."""
        return self._llm.backend.context

    @property
    def messages(self) -> list[Message]:
        """All of it, as the model is sent it."""
        return [*self.opening, *(message for turn in self.turns for message in turn)]

    def ask(self, text: str) -> bool:
        """Answer `text`; returns whether Ctrl-C stopped that. What cannot be asked is said, and left out.

        A question stays in the conversation as it was put: what the model has read stays what it was.
        """
        question = styled([{"role": "user", "content": text}], self.manner.prompting)
        self.turns.append(question)
        self.refused = None
        try:
            return self._answer()
        except (ContextError, TemplateError, UsageError) as error:
            self.turns.pop()
            self.refused = text if isinstance(error, ContextError) else None
            drop = "/drop forgets the oldest turns and asks again, " if self.refused and self.turns else ""
            say(f"flatlm: {error}; {drop}/clear starts over")
            return False

    def again(self) -> bool:
        """Another answer to the last question; returns whether Ctrl-C stopped that."""
        turn = self.turns[-1]
        before, self.turns[-1] = turn, turn[:1]
        try:
            return self._answer()
        except (ContextError, TemplateError, UsageError) as error:
            self.turns[-1] = before
            say(f"flatlm: {error}")
            return False

    def drop(self, count: int) -> None:
        """Forget the oldest turns."""
        del self.turns[:count]

    def undo(self) -> None:
        """Forget the last turn."""
        self.turns.pop()

    def _answer(self) -> bool:
        manner = self.manner
        with ProgressLine("reading", "tokens") as progress:
            stream = self._llm.stream_chat(self.messages, manner.sampling, progress=progress)
            if manner.show_prompt:
                say(self._llm.tokenizer.decode(stream.prompt_ids, skip_special=False))
            status = write(stream, manner.look, begins_thinking(self._llm, stream))
        answer = stream.completion
        self.turns[-1] = [*self.turns[-1][:1], {"role": "assistant", "content": answer.text}]
        self.last = answer
        self.used = answer.timings.prompt_tokens + answer.timings.generated_tokens
        say(f"{summary(answer)[:-1]} | context {self.used} of {self.context}]")
        return status == INTERRUPTED

    def save(self, path: Path) -> None:
        """Write it as JSON: messages as in OpenAI's interface. UsageError where another file is there."""
        if path.exists():
            load(path)  # or it is not ours to replace
        text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1) + "\n"
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from error

    def take(self, messages: Sequence[Message]) -> None:
        """Go on from these."""
        self.clear()
        self.opening = [dict(one) for one in messages if one["role"] == "system"]
        for one in messages:
            if one["role"] == "user":
                self.turns.append([dict(one)])
            elif one["role"] == "assistant" and self.turns:
                self.turns[-1].append(dict(one))

    def set(self, sampling: SamplingOptions) -> None:
        """Sample like this from now on."""
        self.manner = replace(self.manner, sampling=sampling)


def load(path: Path) -> list[Message]:
    """The messages of a file that `save` wrote. UsageError for any other."""
    found = settings.read(path, UsageError, "no conversation that /save wrote")
    messages = found.tables("messages")
    return [{key: one.need(key, str) for key in ("role", "content")} for one in messages]
