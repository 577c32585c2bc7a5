"""The command line of scripts/fuzz."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from tests.fuzzing.findings import FOLDER, keep
from tests.fuzzing.search import Result, search
from tests.fuzzing.target import Target
from tests.fuzzing.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description="Fuzz what flatlm reads. Status 1 where something was found."
    )
    parser.add_argument("target", nargs="+", metavar="TARGET", help=f"all, or of: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each target (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases (default 0)")
    parser.add_argument(
        "--keep", type=Path, default=FOLDER, help="folder for findings (default tests/findings)"
    )
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    args = parser.parse_args()
    names = list(TARGETS) if args.target == ["all"] else args.target
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"unknown target {unknown[0]!r}; there are: all, {', '.join(TARGETS)}")
    results = [_fuzz(TARGETS[name], args.seconds, args.seed, args.keep) for name in names]
    if args.json:
        print(json.dumps([_numbers(result) for result in results]))
    return 1 if any(result.findings for result in results) else 0


def _fuzz(target: Target, seconds: float, seed: int, folder: Path) -> Result:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # their threads do not live on in a forked child
    with tempfile.TemporaryDirectory() as temporary:
        result = search(target, target.prepare(Path(temporary)), seconds, seed)
    print(
        f"{target.name:<13}{result.cases:>8} cases {result.cases / result.seconds:>6.0f}/s "
        f"{result.refused / max(result.cases, 1):>5.0%} refused {result.coverage:>5.0%} of lines "
        f"{len(result.findings):>3} findings",
        flush=True,
    )
    for finding, case in result.findings:
        path = keep(target.name, case, folder)
        print(f"  {finding}\n    {path}", file=sys.stderr, flush=True)
    return result


def _numbers(result: Result) -> dict[str, object]:
    return {
        "target": result.target,
        "seed": result.seed,
        "seconds": round(result.seconds, 1),
        "cases": result.cases,
        "refused": result.refused,
        "coverage": round(result.coverage, 3),
        "findings": [str(finding) for finding, _ in result.findings],
    }


if __name__ == "__main__":
    sys.exit(main())
