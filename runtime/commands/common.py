"""What several verbs share: the model argument, opening it, and the last line of --json."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatlm.runtime import models, names
from flatlm.runtime.commands.streams import printable
from flatlm.runtime.errors import UsageError
from flatlm.runtime.generation.published import TALK, published
from flatlm.runtime.options import BackendOptions, DraftOptions, SamplingOptions, from_args

if TYPE_CHECKING:
    from flatlm.runtime.llm import LLM


def add_model(parser: argparse.ArgumentParser) -> None:
    """The artifact's folder, as MODEL or as -m MODEL."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="name (`flatlm list`) or folder of an exported model"
    )
    parser.add_argument("-m", "--model", dest="model_flag", metavar="MODEL", help="the same, as a flag")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The switch --json."""
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")


def model_path(args: argparse.Namespace) -> Path:
    """The folder that was given, by path or by name. Raises UsageError where none was, or two."""
    if (args.model is None) == (args.model_flag is None):
        raise UsageError("give the model's folder once: as the first argument, or with -m")
    return names.resolve(args.model if args.model_flag is None else args.model_flag)


def open_llm(args: argparse.Namespace, batch: int = 1) -> LLM:
    """The model of `args`, with its BackendOptions and DraftOptions, for `batch` sequences at once."""
    from flatlm.runtime.llm import LLM

    path, chosen = model_path(args), from_args(args, BackendOptions)
    warn_of_threads(chosen)
    llm = LLM(path, chosen, from_args(args, DraftOptions), batch=batch)
    models.note_use(path)
    return llm


def warn_of_threads(options: BackendOptions) -> None:
    """Said where more threads are asked for than may run at once: each step then waits for the last."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if options.threads is not None and options.threads > cores:
        say(f"flatlm: {options.threads} threads on {cores} cores wait for one another: -t {cores} is faster")


def sampling_of(args: argparse.Namespace, path: Path, talk: bool) -> SamplingOptions:
    """The sampling of an answer to people: flags, else what the model was published with, else, in a talk,
    TALK. With a temperature of 0 nothing is taken from the model: the likeliest token it is.
    """
    if args.temp is not None and from_args(args, SamplingOptions).temp == 0:
        return from_args(args, SamplingOptions)
    return from_args(args, SamplingOptions, published(path) or (TALK if talk else None))


def read_text(path: str) -> str:
    """The text of a file, of stdin for `-`. Raises UsageError where it cannot be read."""
    if path == "-" and sys.stdin is None:
        raise UsageError("standard input is closed: there is nothing to read")
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on one line of stdout; of ASCII characters where that is not UTF-8."""
    utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "").replace("_", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not utf8, allow_nan=False))


def say(text: str) -> None:
    """A line of talk."""
    print(printable(text), file=sys.stderr)
