"""flatlm generate: answer one prompt, streamed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flatlm.runtime.cli import INTERRUPTED
from flatlm.runtime.commands.common import (
    add_json,
    add_model,
    model_path,
    open_llm,
    print_json,
    read_text,
    sampling_of,
    say,
)
from flatlm.runtime.commands.streams import piped
from flatlm.runtime.commands.talking.screen import OPEN, RESET, Look, show
from flatlm.runtime.errors import UsageError
from flatlm.runtime.options import (
    BackendOptions,
    DraftOptions,
    PromptOptions,
    SamplingOptions,
    add_flags,
    from_args,
)
from flatlm.runtime.progress import ProgressLine
from flatlm.runtime.text.prompt_styles import styled

if TYPE_CHECKING:
    from flatlm.runtime.generation.answer import Completion, Prompt
    from flatlm.runtime.generation.stream import Stream
    from flatlm.runtime.llm import LLM

COLOURS = (32, 36, 33, 35, 34)  # green, cyan, yellow, magenta, blue: the foreground of ANSI terminals
TAIL = 8  # ids of a prompt in which a template may have begun the model's thinking


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.set_defaults(run=run)
    parser.description = (
        "Answer a prompt (-p, -f, or stdin; what is piped in stands before that of -p). It becomes a user "
        "message of the model's chat template."
    )
    add_model(parser)
    add_flags_of_answers(parser)


def add_flags_of_answers(parser: argparse.ArgumentParser) -> None:
    """All flags but the model."""
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt")
    parser.add_argument("-f", "--file", metavar="FILE", help="a file with the prompt, - for stdin")
    parser.add_argument("-sys", "--system", metavar="TEXT", help="a system message before it")
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is, without the chat template"
    )
    parser.add_argument("--show-prompt", action="store_true", help="print on stderr what the model is sent")
    add_json(parser)
    add_flags(parser, PromptOptions)
    add_flags(parser, SamplingOptions)
    add_flags(parser, BackendOptions)
    add_flags(parser, DraftOptions)
    add_look(parser)


def add_look(parser: argparse.ArgumentParser) -> None:
    """How an answer is shown."""
    parser.add_argument(
        "--show-draft", action="store_true", help="on a terminal, colour the text by the drafter it came from"
    )
    parser.add_argument(
        "--hide-thinking", action="store_true", help="show no <think> … </think>; on a terminal it is dim"
    )


def run(args: argparse.Namespace, talk: bool = False) -> int:
    """Print the answer as it comes, or with --json one object at the end.

    talk: a model without settings of its own samples as in a chat, instead of taking the likeliest tokens.
    """
    text = _text(args)
    with open_llm(args) as llm, ProgressLine("reading the prompt", "tokens") as progress:
        stream = llm.stream_prompt(_prompt(args, text, llm, talk), progress)
        if args.show_prompt:
            say(llm.tokenizer.decode(stream.prompt_ids, skip_special=False))
        if args.json:
            status = _finish(stream)
            print_json(as_json(stream.completion, llm))
        else:
            status = write(stream, look_of(args, llm), begins_thinking(llm, stream))
        say(summary(stream.completion))
    return status


def _finish(stream: Stream) -> int:
    """Take the whole answer, or what there is at a Ctrl-C; returns the status."""
    try:
        stream.run()
    except KeyboardInterrupt:
        stream.close()
        return INTERRUPTED
    return 0


def _text(args: argparse.Namespace) -> str:
    if args.prompt is not None and args.file is not None:
        raise UsageError("-p and -f both give the prompt: use one")
    if args.prompt is not None:
        return "\n\n".join([text for text in (piped().rstrip(),) if text] + [args.prompt])
    if args.file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("no prompt: give -p TEXT or -f FILE, or pipe one in")
    text = read_text(args.file or "-")
    if not text.strip() and args.file is None:
        raise UsageError("standard input is empty: give -p TEXT or -f FILE, or pipe a prompt in")
    return text


def _prompt(args: argparse.Namespace, text: str, llm: LLM, talk: bool) -> Prompt:
    """What the model is asked, as ids: `text` as a user's message, or as it is."""
    sampling, prompting = sampling_of(args, model_path(args), talk), from_args(args, PromptOptions)
    if args.raw or llm.template is None:
        if args.system is not None:
            raise UsageError("--system needs a chat template" + ("; leave --raw out" if args.raw else ""))
        if not args.raw:
            say("flatlm: this model has no chat template; it continues the prompt as it is")
        (put,) = styled([{"role": "user", "content": text}], prompting)
        return llm.text_prompt(put["content"], sampling)
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    return llm.chat_prompt([*system, {"role": "user", "content": text}], sampling, prompting)


def _colours(args: argparse.Namespace, llm: LLM) -> Mapping[str, str]:
    """The escape sequence of each drafter, told on stderr; none but with --show-draft on a terminal."""
    if not (args.show_draft and _on_terminal() and llm.speculator is not None):
        return {}
    names = llm.speculator.names
    chosen = {name: f"\x1b[{COLOURS[i % len(COLOURS)]}m" for i, name in enumerate(names)}
    say("[drafted by " + ", ".join(f"{chosen[name]}{name}{RESET}" for name in names) + "]")
    return chosen


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def look_of(args: argparse.Namespace, llm: LLM) -> Look:
    """How answers are shown, by the flags of `add_look`."""
    return Look(_on_terminal(), args.hide_thinking, _colours(args, llm))


def begins_thinking(llm: LLM, stream: Stream) -> bool:
    """Whether the prompt's end has begun the model's thinking, as some templates do."""
    end = llm.tokenizer.decode(stream.prompt_ids[-TAIL:], skip_special=False)
    return end.rstrip().endswith(OPEN)


def write(stream: Stream, look: Look, thinking: bool = False) -> int:
    """Show an answer as it comes; returns the status. Ctrl-C ends it, keeping the text.

    thinking: it begins with thoughts.
    """
    written, status = [0], 0

    def pieces() -> Iterator[tuple[str, str]]:
        for piece in stream:
            written[0] += len(piece)
            yield piece, stream.source

    try:
        show(pieces(), look, thinking)
    except KeyboardInterrupt:
        stream.close()
        status = INTERRUPTED
    print(stream.completion.text[written[0] :], flush=True)
    return status


def summary(answer: Completion) -> str:
    """One line of talk on what the answer cost."""
    t, d = answer.timings, answer.timings.drafting
    kept = f" ({t.reused_tokens} kept)" if t.reused_tokens else ""
    parts = (
        f"prompt {t.prompt_tokens} tokens{kept}, {t.prefill_seconds:.2f} s, {t.prefill_rate:.1f} t/s",
        f"answer {t.generated_tokens} tokens, {t.decode_seconds:.2f} s, {t.decode_rate:.1f} t/s",
        *(
            []
            if d is None
            else [f"drafted {d.drafted}, kept {d.accepted}, {d.tokens_per_pass:.2f} tokens a pass"]
        ),
        answer.finish_reason,
    )
    return f"[{' | '.join(parts)}]"


def as_json(answer: Completion, llm: LLM) -> dict[str, Any]:
    """The answer for --json; times in seconds, rates in tokens per second."""
    logprobs = [one._asdict() for one in answer.logprobs]
    rates = {"prefill_rate": answer.timings.prefill_rate, "decode_rate": answer.timings.decode_rate}
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "tokens": list(answer.tokens),
        "seed": answer.seed,
        **({"logprobs": logprobs} if logprobs else {}),
        "backend": llm.backend.name,
        "timings": {**asdict(answer.timings), **rates},
    }
