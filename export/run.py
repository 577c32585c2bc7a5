"""`flatlm run`: from a word to an answer. Fetches and exports a model once, then chats or answers."""

from __future__ import annotations

import argparse
import sys

from flatlm.export.commands import Stages
from flatlm.export.recipe import RECIPES
from flatlm.export.shelve import Talk, shelve
from flatlm.runtime import names
from flatlm.runtime.commands import chat, generate
from flatlm.runtime.commands.common import say
from flatlm.runtime.format.artifact import MANIFEST


def add_run(parser: argparse.ArgumentParser) -> None:
    """`flatlm run MODEL [PROMPT]`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="name or folder of an exported model; or what is made into one: a name that `flatlm pull` "
        "knows, a hub id (owner/model), a GGUF file, a Hugging Face folder",
    )
    parser.add_argument(
        "words", nargs="?", metavar="PROMPT", help="answered once; without it, a conversation"
    )
    parser.add_argument("--name", metavar="NAME", help="what to call a model that is made now")
    parser.add_argument(
        "--recipe", choices=tuple(RECIPES), default="quick", help="how to export it (default quick: seconds)"
    )
    generate.add_flags_of_answers(parser)
    parser.set_defaults(run=run, model_flag=None)
    parser.description = (
        f"Fetch and export a model once, into {names.folder()}, then answer PROMPT (and what stdin holds), "
        "or chat."
    )


def run(args: argparse.Namespace) -> int:
    """Find or make the model, then do what `generate` or `chat` does."""
    args.model = str(_ready(args))
    if args.words is not None:
        args.prompt = args.words if args.prompt is None else f"{args.words}\n\n{args.prompt}"
    if args.prompt is None and args.file is None and not piped_in():
        return chat.run(args)
    return generate.run(args, talk=True)


def piped_in() -> bool:
    """Whether stdin gives the prompt: it is there, and no terminal."""
    return sys.stdin is not None and not sys.stdin.isatty()


def _ready(args: argparse.Namespace) -> object:
    """The folder of the model that is meant, made where it has to be."""
    found = names.find(args.model)
    if found is not None and (found / MANIFEST).is_file():
        return found
    stages = Stages()
    try:
        made = shelve(args.model, RECIPES[args.recipe], Talk(stages, sys.stderr), args.name)
    finally:
        stages.close()
    if made.seconds is not None:
        name = made.path.name
        better = (
            " It loses about twice what edge does, which takes minutes: "
            f"flatlm export {args.model} --name {name} --force"
            if args.recipe == "quick"
            else ""
        )
        say(f"{name}: exported in {made.seconds:.0f} s by recipe {args.recipe} into {made.path}.{better}")
    return made.path
