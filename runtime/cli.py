"""The command `flatlm`: one verb, one module. stdout carries the result, stderr the talk.

A verb is a function `register(subparsers)`, which adds its parser and sets `run(args) -> exit status` on it.
Only the module of the verb that was given is imported, so `flatlm info` does not load what `flatlm export`
needs.

Exit status: 0 done, 1 an error, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeAlias

from flatlm import __version__
from flatlm.runtime.errors import BackendError, FlatlmError, UsageError
from flatlm.runtime.options import did_you_mean

VERBS = {  # verb: (module:function, what it does, extra that brings the module's packages)
    "generate": ("flatlm.runtime.commands.generate:register", "answer one prompt", ""),
    "chat": ("flatlm.runtime.commands.chat:register", "talk with a model in the terminal", ""),
    "export": (
        "flatlm.export.commands:add_export",
        "turn a Hugging Face or GGUF model into an artifact",
        "export",
    ),
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
}
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are UsageErrors: reported in one place, on one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"  # what a verb adds its parser to


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name); returns the exit status."""
    with _spoken_warnings():
        try:
            status = _dispatch(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
            return status
        except FlatlmError as error:
            return _complain(str(error), error.exit_code)
        except KeyboardInterrupt:
            return _complain("interrupted", INTERRUPTED)
        except MemoryError:
            return _complain("out of memory: use a smaller model or a smaller --ctx", 1)
        except BrokenPipeError:  # the reader of stdout left, as `head` does; nothing more can be said there
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except SystemExit as leave:  # argparse after --help
            return leave.code if isinstance(leave.code, int) else 0


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else UsageError.exit_code
    if argv[0] == "--version":
        print(f"flatlm {__version__}")
        return 0
    verb = argv[0]
    if verb not in VERBS:
        raise UsageError(f"unknown verb {verb!r}{did_you_mean(verb, VERBS)}")
    parser = Parser(prog="flatlm", allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _load(verb)(subparsers)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UsageError(f"unknown argument {unknown[0]!r} (see `flatlm {verb} --help`)")
    return int(args.run(args) or 0)


def _load(verb: str) -> Callable[[Subparsers], object]:
    place, _, extra = VERBS[verb]
    module, _, function = place.partition(":")
    try:
        register: Callable[[Subparsers], object] = getattr(importlib.import_module(module), function)
    except ImportError as error:
        if not extra:
            raise
        raise BackendError(
            f"`flatlm {verb}` needs packages that are not installed ({error}): pip install flatlm[{extra}]"
        ) from None
    return register


def add_verb(
    subparsers: Subparsers,
    verb: str,
    run: Callable[[argparse.Namespace], int],
    description: str,
) -> argparse.ArgumentParser:
    """The parser of `verb`, running `run(args)`. For the modules in VERBS."""
    summary = VERBS[verb][1]
    parser = subparsers.add_parser(verb, help=summary, description=description or summary, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb.ljust(width)}  {summary}" for verb, (_, summary, _) in VERBS.items())
    return f"usage: flatlm VERB …\n\n{verbs}\n\n`flatlm VERB --help` shows a verb's options."


def _complain(message: str, status: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    print(f"flatlm: {' '.join(message.split())}", file=sys.stderr)
    return status


@contextlib.contextmanager
def _spoken_warnings() -> Iterator[None]:
    """Warnings as lines of talk, each once; without file names and code."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: print(f"flatlm: warning: {message}", file=sys.stderr)
        yield
