"""flatlm chat: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from typing import TYPE_CHECKING, Any

from flatlm.runtime.cli import INTERRUPTED
from flatlm.runtime.commands.common import add_model, model_path, open_llm, sampling_of, say
from flatlm.runtime.commands.generate import summary, write
from flatlm.runtime.commands.streams import accept_foreign_bytes, as_text
from flatlm.runtime.errors import ContextError, TemplateError, UsageError
from flatlm.runtime.options import (
    BackendOptions,
    DraftOptions,
    PromptOptions,
    SamplingOptions,
    add_flags,
    did_you_mean,
    from_args,
)
from flatlm.runtime.progress import ProgressLine
from flatlm.runtime.text.prompt_styles import styled

if TYPE_CHECKING:
    from flatlm.runtime.llm import LLM

HELP = "Ctrl-C stops an answer, twice leaves; Ctrl-D leaves. /clear starts over, /quit leaves, /help."
COMMANDS = ("/clear", "/quit", "/help")
_NAME = re.compile(r"/[A-Za-z]+\s*")  # what looks like a command's name; a line with more in it is a question


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.set_defaults(run=run)
    parser.description = "Talk with a model. " + HELP
    add_model(parser)
    parser.add_argument(
        "-sys", "--system", metavar="TEXT", help="a system message for the whole conversation"
    )
    parser.add_argument("--show-prompt", action="store_true", help="print on stderr what the model is sent")
    add_flags(parser, PromptOptions)
    add_flags(parser, SamplingOptions)
    add_flags(parser, BackendOptions)
    add_flags(parser, DraftOptions)


def run(args: argparse.Namespace) -> int:
    """Read lines from stdin and answer each; returns 130 where Ctrl-C ended the conversation."""
    prompting = from_args(args, PromptOptions)
    with open_llm(args) as llm:
        sampling = sampling_of(args, model_path(args), talk=True)
        say(HELP)
        accept_foreign_bytes()
        conversation = Conversation(llm, args.system, sampling, args.show_prompt)
        return converse(conversation, prompting)


class Conversation:
    """What was said so far. An answer that was stopped stays in it."""

    def __init__(self, llm: LLM, system: str | None, sampling: SamplingOptions, show: bool) -> None:
        self._llm, self._sampling, self._show = llm, sampling, show
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self.clear()

    def clear(self) -> None:
        self._messages: list[dict[str, Any]] = list(self._opening)

    def answer(self, messages: list[dict[str, Any]]) -> bool:
        """Answer `messages`, which go on with it; returns whether Ctrl-C stopped that."""
        self._messages += messages
        try:
            with ProgressLine("reading", "tokens") as progress:
                stream = self._llm.stream_chat(self._messages, self._sampling, progress=progress)
                if self._show:
                    say(self._llm.tokenizer.decode(stream.prompt_ids, skip_special=False))
                status = write(stream)
        except (ContextError, TemplateError, UsageError) as error:
            self._messages.pop()
            say(f"flatlm: {error}; /clear starts over")
            return False
        self._messages.append({"role": "assistant", "content": stream.completion.text})
        say(summary(stream.completion))
        return status == INTERRUPTED


def converse(conversation: Conversation, prompting: PromptOptions) -> int:
    """The loop over stdin.

    A line stays in the conversation as it was put to the model: what it has read stays what it was.
    """
    interrupted = False
    while True:
        try:
            line = _read_line()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            say("")
            if interrupted:
                return INTERRUPTED
            interrupted = True
            say("(Ctrl-C again leaves)")
            continue
        command = line.strip() if _NAME.fullmatch(line) else ""
        if command == "/quit":
            return 0
        if command == "/clear":
            conversation.clear()
        elif command == "/help":
            say(HELP)
        elif command:
            hint = did_you_mean(command, COMMANDS)
            say(f"flatlm: {command} is no command{hint} (with a blank before it, it is asked)")
        elif line.strip():
            interrupted = conversation.answer(styled([{"role": "user", "content": line}], prompting))


def _read_line() -> str:
    """One line of stdin; on a terminal with a prompt and, where Python has readline, with editing."""
    if sys.stdin is None:
        raise EOFError
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return as_text(input())
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  its import is what gives input() editing and history
    return as_text(input("> "))
