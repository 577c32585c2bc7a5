"""flatlm chat: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flatlm.runtime.cli import INTERRUPTED, Subparsers, add_verb
from flatlm.runtime.commands.common import add_model, open_llm, say
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


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(subparsers, "chat", run, "Talk with a model. " + HELP)
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
    sampling = asdict(from_args(args, SamplingOptions))
    prompting = from_args(args, PromptOptions)
    opening = [] if args.system is None else [{"role": "system", "content": args.system}]
    with open_llm(args) as llm:
        say(HELP)
        accept_foreign_bytes()
        return converse(llm, opening, sampling, prompting, args.show_prompt)


def converse(
    llm: LLM, opening: list[dict[str, Any]], sampling: dict[str, Any], prompting: PromptOptions, show: bool
) -> int:
    """The loop over stdin. An answer that was stopped stays in the conversation.

    So does a line as it was put to the model: what it has read of the conversation stays what it was.
    """
    messages = list(opening)
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
            messages = list(opening)
        elif command == "/help":
            say(HELP)
        elif command:
            hint = did_you_mean(command, COMMANDS)
            say(f"flatlm: {command} is no command{hint} (with a blank before it, it is asked)")
        elif line.strip():
            messages += styled([{"role": "user", "content": line}], prompting)
            interrupted = _answer(llm, messages, sampling, show)


def _answer(llm: LLM, messages: list[dict[str, Any]], sampling: dict[str, Any], show: bool) -> bool:
    """Answer the last of `messages`, extending them; returns whether Ctrl-C stopped it."""
    try:
        with ProgressLine("reading", "tokens") as progress:
            stream = llm.stream_chat(messages, progress=progress, **sampling)
            if show:
                say(llm.tokenizer.decode(stream.prompt_ids, skip_special=False))
            status = write(stream)
    except (ContextError, TemplateError, UsageError) as error:
        messages.pop()
        say(f"flatlm: {error}; /clear starts over")
        return False
    messages.append({"role": "assistant", "content": stream.completion.text})
    say(summary(stream.completion))
    return status == INTERRUPTED


def _read_line() -> str:
    """One line of stdin; on a terminal with a prompt and, where Python has readline, with editing."""
    if sys.stdin is None:
        raise EOFError
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return as_text(input())
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  its import is what gives input() editing and history
    return as_text(input("> "))
