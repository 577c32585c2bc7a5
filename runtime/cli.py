"""The command `flatlm`: one verb, one module. stdout carries the result, stderr the talk.

A verb is a function `register(parser)`, which adds its flags and sets `run(args) -> exit status` on it.
Only the module of the verb that was given is imported, so `flatlm info` does not load what `flatlm export`
needs.

Exit status: 0 done, 1 an error, 2 wrong use, 130 interrupted (docs/commands.md). Whatever is raised ends as
one line; with FLATLM_DEBUG=1 the traceback stands before it.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from flatlm import __version__
from flatlm.runtime.commands import streams
from flatlm.runtime.commands.habits import translated
from flatlm.runtime.errors import BackendError, FlatlmError, ResourceError, UsageError, first_line, full_disk
from flatlm.runtime.options import did_you_mean

VERBS = {  # verb: (module:function, what it does, extra that brings the module's packages)
    "run": ("flatlm.export.run:add_run", "fetch and export a model once, then chat or answer", ""),
    "generate": ("flatlm.runtime.commands.generate:register", "answer one prompt", ""),
    "chat": ("flatlm.runtime.commands.chat:register", "talk with a model in the terminal", ""),
    "serve": ("flatlm.runtime.commands.serve:register", "answer over HTTP", "serve"),
    "export": (
        "flatlm.export.commands:add_export",
        "turn a Hugging Face or GGUF model into an artifact",
        "export",
    ),
    "models": ("flatlm.export.commands:add_models", "show the model types that can be exported", ""),
    "list": ("flatlm.runtime.commands.shelf:register_list", "show the models that have a name", ""),
    "rm": ("flatlm.runtime.commands.shelf:register_rm", "delete models by name", ""),
    "cp": ("flatlm.runtime.commands.shelf:register_cp", "copy a model under another name", ""),
    "push": ("flatlm.runtime.commands.shelf:register_push", "copy a model to another machine by ssh", ""),
    "pull": ("flatlm.export.commands:add_pull", "fetch a model", "export"),
    "info": ("flatlm.runtime.commands.info:register", "show what an artifact is", ""),
    "verify": (
        "flatlm.runtime.commands.verify:register",
        "check every file of an artifact against its hash",
        "",
    ),
    "parity": ("flatlm.runtime.commands.parity:register", "compare all backends on the same tokens", ""),
    "bench": ("flatlm.runtime.commands.bench:register", "measure speed as llama-bench does", ""),
    "eval": (
        "flatlm.runtime.commands.eval:register",
        "measure quality: tasks, perplexity, KL divergence",
        "",
    ),
    "compare": (
        "flatlm.runtime.commands.compare:register",
        "compare two runs of `flatlm eval`, item by item",
        "",
    ),
    "doctor": (
        "flatlm.runtime.commands.doctor:register",
        "show what this machine offers and what is missing",
        "",
    ),
    "completion": (
        "flatlm.runtime.commands.completion:register",
        "print what bash, zsh or fish completes",
        "",
    ),
}
INTERRUPTED = 130
NO_STDOUT = "standard output is closed, so the result has nowhere to go: redirect it, if only to /dev/null"


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are UsageErrors, reported in one place, on one line.

    What follows a flag that takes a value is that value, also where it begins with a dash.
    """

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(self._joined(sys.argv[1:] if args is None else args), namespace)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """argparse's, which drops a `--`, before Python 3.13 also where that is a flag's value."""
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            self._check_value(action, "--")
            return "--"
        return super()._get_values(action, arg_strings)

    def _flags(self) -> dict[str, bool]:
        """The flags there are, and whether each is followed by a value."""
        return {name: one.nargs is None for name, one in self._option_string_actions.items()}

    def _joined(self, words: Sequence[str]) -> list[str]:
        """`-p -1+2` as `-p=-1+2`: argparse would take the second word for a flag by its look."""
        joined: list[str] = []
        waiting = iter(list(translated(words, self._flags(), _say)))
        for word in waiting:
            if word == "--":
                return [*joined, word, *waiting]
            action = self._option_string_actions.get(word)
            if action is not None and action.nargs is None:
                value = next(waiting, None)
                if value is None:
                    joined.append(word)  # argparse says what is missing
                else:
                    joined += [f"{word}={value}"] if value.startswith("-") else [word, value]
            else:
                joined.append(word)
        return joined


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name); returns the exit status."""
    with _noted_interrupts() as interrupts, streams.standard_streams(), _spoken_warnings():
        try:
            if sys.stdout is None:
                raise ResourceError(NO_STDOUT)  # now, not after all the work
            try:
                status = _dispatch(list(sys.argv[1:] if argv is None else argv))
            except SystemExit as leave:  # argparse after --help
                status = leave.code if isinstance(leave.code, int) else 0
            sys.stdout.flush()
            return status
        except BrokenPipeError:  # of stdout; nothing more can be said there
            return 1
        except BaseException as error:  # noqa: BLE001  a panic of the tokenizers is no Exception
            if os.environ.get("FLATLM_DEBUG") == "1":
                traceback.print_exception(error)
            return _complain(*_meaning(error, bool(interrupts)))


def _meaning(error: BaseException, interrupted: bool) -> tuple[str, int]:
    """What is said of `error`, and the exit status."""
    if isinstance(error, KeyboardInterrupt) or (interrupted and _while_importing(error)):
        return "interrupted", INTERRUPTED
    if isinstance(error, FlatlmError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "out of memory: use a smaller model or a smaller --ctx", 1
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return (
            "the system lets flatlm start no more threads: fewer --threads, or less memory in use by others",
            1,
        )
    if isinstance(error, OSError) and error.filename is None and (full := full_disk(error)):
        return f"the disk {full}: make room and try again", 1
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}", 1
    name, said = type(error).__name__, first_line(error)
    what = name if said == name else f"{name}: {said:.300}"
    return f"{what} (a bug of flatlm or a damaged file; FLATLM_DEBUG=1 shows where)", 1


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """The Ctrl-C so far. Each is a KeyboardInterrupt too, but numpy's import makes an ImportError of that."""
    seen: list[int] = []

    def interrupt(number: int, frame: object) -> NoReturn:
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, or another's
        yield seen
        return
    try:
        signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # not the main thread, which gets no signals
        yield seen
        return
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _while_importing(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ImportError | KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _dispatch(argv: list[str]) -> int:
    if argv[0:1] == ["help"] and len(argv) > 1:
        argv = [argv[1], "--help"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else UsageError.exit_code
    if argv[0] in ("--version", "-V", "version"):
        print(f"flatlm {__version__}")
        return 0
    verb = argv[0]
    if verb not in VERBS:
        known = ("--version", "--help") if verb.startswith("-") else VERBS
        raise UsageError(f"unknown verb {verb!r}{did_you_mean(verb, known)}")
    parser = parser_of(verb)
    args, unknown = parser.parse_known_args(argv[1:])
    if unknown:
        if verb in ("generate", "chat") and not unknown[0].startswith("-"):
            raise UsageError(
                f"unknown argument {unknown[0]!r}: a prompt is given as -p TEXT, or to `flatlm run`"
            )
        close = difflib.get_close_matches(unknown[0].partition("=")[0], parser._option_string_actions, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f" (see `flatlm {verb} --help`)"
        raise UsageError(f"unknown argument {unknown[0]!r}{hint}")
    return int(args.run(args) or 0)


def parser_of(verb: str) -> Parser:
    """What reads the words after a verb of VERBS; its `run` is what the verb does."""
    place, summary, extra = VERBS[verb]
    module, _, function = place.partition(":")
    try:
        register: Callable[[Parser], object] = getattr(importlib.import_module(module), function)
    except ImportError as error:
        if not extra:
            raise
        raise BackendError(
            f"`flatlm {verb}` needs packages that are not installed ({error}): pip install flatlm[{extra}]"
        ) from None
    parser = Parser(prog=f"flatlm {verb}", description=summary, allow_abbrev=False)
    register(parser)
    return parser


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb.ljust(width)}  {summary}" for verb, (_, summary, _) in VERBS.items())
    return f"usage: flatlm VERB …\n\n{verbs}\n\n`flatlm VERB --help` shows a verb's options."


def _say(text: str) -> None:
    print(streams.printable(text), file=sys.stderr)


def _complain(message: str, status: int) -> int:
    with contextlib.suppress(FlatlmError, OSError, AttributeError):
        sys.stdout.flush()  # what was printed comes first
    print(f"flatlm: {streams.printable(' '.join(message.split()))}", file=sys.stderr)
    return status


@contextlib.contextmanager
def _spoken_warnings() -> Iterator[None]:
    """Warnings as lines of talk, each once; without file names and code."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: print(
            f"flatlm: warning: {streams.printable(str(message))}", file=sys.stderr
        )
        yield
