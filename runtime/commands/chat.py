"""flatlm chat: a conversation in the terminal."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flatlm.runtime.cli import INTERRUPTED
from flatlm.runtime.commands import generate
from flatlm.runtime.commands.common import add_model, model_path, open_llm, sampling_of, say
from flatlm.runtime.commands.streams import accept_foreign_bytes
from flatlm.runtime.commands.talking import entry
from flatlm.runtime.commands.talking.conversation import Conversation, Manner
from flatlm.runtime.commands.talking.words import Leave, command_of, obey
from flatlm.runtime.generation.published import in_words
from flatlm.runtime.options import (
    BackendOptions,
    DraftOptions,
    PromptOptions,
    SamplingOptions,
    add_flags,
    from_args,
)

if TYPE_CHECKING:
    from flatlm.runtime.llm import LLM

HELP = "Ctrl-C stops an answer, twice leaves; Ctrl-D leaves. /help shows the commands."


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.set_defaults(run=run)
    parser.description = (
        "Talk with a model. " + HELP + " A paste is one message; what is typed is kept for the next time "
        "(FLATLM_HISTORY=FILE, empty: nowhere)."
    )
    add_model(parser)
    parser.add_argument(
        "-sys", "--system", metavar="TEXT", help="a system message for the whole conversation"
    )
    parser.add_argument("--show-prompt", action="store_true", help="print on stderr what the model is sent")
    add_flags(parser, PromptOptions)
    add_flags(parser, SamplingOptions)
    add_flags(parser, BackendOptions)
    add_flags(parser, DraftOptions)
    generate.add_look(parser)


def run(args: argparse.Namespace) -> int:
    """Read messages from stdin and answer each; returns 130 where Ctrl-C ended the conversation."""
    prompting = from_args(args, PromptOptions)
    with open_llm(args) as llm:
        sampling = sampling_of(args, model_path(args), talk=True)
        say(_first_line(llm, sampling))
        say(HELP)
        accept_foreign_bytes()
        look = generate.look_of(args, llm)
        return converse(Conversation(llm, args.system, Manner(sampling, prompting, look, args.show_prompt)))


def _first_line(llm: LLM, sampling: SamplingOptions) -> str:
    backend = llm.backend
    kernels = getattr(backend, "kernels", None)
    runs = backend.name if kernels is None else f"{backend.name} kernels {kernels.tier.name}"
    threads = getattr(backend, "threads", None)
    parts = [
        "" if llm.artifact is None else f"{llm.artifact.manifest.name} ({llm.artifact.manifest.recipe})",
        f"context {backend.context} tokens",
        in_words(sampling),
        runs + (f", {threads} threads" if threads else ""),
    ]
    return "[" + " | ".join(filter(None, parts)) + "]"


def converse(conversation: Conversation) -> int:
    """The loop over stdin."""
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
        command = command_of(line)
        try:
            if command is not None:
                interrupted = obey(conversation, *command)
            elif line.strip():
                interrupted = conversation.ask(line)
        except Leave:
            return 0


def _read_line() -> str:
    return entry.read()
