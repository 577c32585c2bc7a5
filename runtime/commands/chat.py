"""flatlm chat: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from runtime.cli import INTERRUPTED, add_verb
from runtime.commands.common import add_model, open_llm, say
from runtime.commands.generate import summary, write
from runtime.errors import ContextError, TemplateError
from runtime.options import BackendOptions, SamplingOptions, add_flags, from_args
from runtime.progress import ProgressLine

if TYPE_CHECKING:
    from runtime.llm import LLM

HELP = "Ctrl-C stops an answer, twice leaves; Ctrl-D leaves. /clear starts over, /quit leaves."


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb's parser."""
    parser = add_verb(subparsers, "chat", run, "Talk with a model. " + HELP)
    add_model(parser)
    parser.add_argument(
        "-sys", "--system", metavar="TEXT", help="a system message for the whole conversation"
    )
    add_flags(parser, SamplingOptions)
    add_flags(parser, BackendOptions)


def run(args: argparse.Namespace) -> int:
    """Read lines from stdin and answer each; returns 130 where Ctrl-C ended the conversation."""
    sampling = asdict(from_args(args, SamplingOptions))
    opening = [] if args.system is None else [{"role": "system", "content": args.system}]
    with open_llm(args) as llm:
        say(HELP)
        return converse(llm, opening, sampling)


def converse(llm: LLM, opening: list[dict[str, str]], sampling: dict[str, Any]) -> int:
    """The loop over stdin. An answer that was stopped stays in the conversation."""
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
        command = line.strip()
        if command == "/quit":
            return 0
        if command == "/clear":
            messages = list(opening)
        elif command.startswith("/"):
            say(HELP)
        elif command:
            interrupted = _answer(llm, messages, line, sampling)


def _answer(llm: LLM, messages: list[dict[str, str]], line: str, sampling: dict[str, Any]) -> bool:
    """Answer `line`, extending `messages`; returns whether Ctrl-C stopped it."""
    messages.append({"role": "user", "content": line})
    try:
        with ProgressLine("reading", "tokens") as progress:
            stream = llm.stream_chat(messages, progress=progress, **sampling)
            status = write(stream)
    except (ContextError, TemplateError) as error:
        messages.pop()
        say(f"flatlm: {error}; /clear starts over")
        return False
    messages.append({"role": "assistant", "content": stream.completion.text})
    say(summary(stream.completion))
    return status == INTERRUPTED


def _read_line() -> str:
    """One line of stdin; on a terminal with a prompt and, where Python has readline, with editing."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return input()
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  its import is what gives input() editing and history
    return input("> ")
