"""flatlm compare: two runs of `flatlm eval`, item by item."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from flatlm.runtime.commands.common import add_json, print_json


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.set_defaults(run=run)
    parser.description = (
        "Compare two runs of the same task (the --out files of `flatlm eval`) over the items both have: the "
        "difference with its 95 % interval (Newcombe 1998) and McNemar's exact p."
    )
    parser.add_argument("a", metavar="A", help="a run")
    parser.add_argument("b", metavar="B", help="the run to compare with it")
    parser.add_argument("--png", metavar="FILE", help="draw both shares and the difference")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the settings that differ, both shares and the difference, by both parsers where there are two."""
    from flatlm.runtime.evaluation import comparison, plot, summary
    from flatlm.runtime.evaluation.run_file import read_run

    a, b = comparison.matched(read_run(Path(args.a)), read_run(Path(args.b)))
    paired = {"right": comparison.pair(a, b)}
    if "authors_right" in a.records[0]:
        paired["authors_right"] = comparison.pair(a, b, by="authors_right")
    figures = {"a": summary.summarize(a.records), "b": summary.summarize(b.records)}
    settings = comparison.differing(a, b)
    if args.png:
        plot.draw(Path(args.png), (Path(args.a).stem, Path(args.b).stem), paired["right"])
    if args.json:
        print_json({"settings": settings, **{by: asdict(one) for by, one in paired.items()}, **figures})
        return 0
    for name, (in_a, in_b) in settings.items():
        print(f"{name}: A {in_a}, B {in_b}")
    for name, path in (("a", args.a), ("b", args.b)):
        print("\n".join([f"{name.upper()} {path}", *("  " + line for line in summary.lines(figures[name]))]))
    print(comparison.paired_text(paired["right"]))
    if "authors_right" in paired:
        print(f"by the authors' parser: {comparison.paired_text(paired['authors_right'])}")
    return 0
