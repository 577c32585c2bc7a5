"""Two checkouts beside one another, in turns within one run: is the newer one slower?

    python scripts/bench_trees.py OLD=CHECKOUT:MODEL NEW=CHECKOUT:MODEL [-r 5] [--batch 8] [--json FILE]

Each round runs, for one tree after the other and then the other way round: a 512-token prompt, 128 tokens of
decoding, a step of several sequences, and a process from its start to its first byte. A round's ratio is that
of rates, new over old, so above 1 the newer is faster; what counts is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

MAIN = """
import sys
try:
    from flatlm.runtime.cli import main
except ImportError:  # a checkout from before the packages had one name
    from runtime.cli import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Tree:
    """A checkout and a model that it reads."""

    name: str
    root: Path
    model: Path

    @classmethod
    def parse(cls, text: str) -> Tree:
        """NAME=CHECKOUT:MODEL."""
        name, _, rest = text.partition("=")
        root, _, model = rest.partition(":")
        if not (name and Path(root).is_dir() and Path(model).is_dir()):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not NAME=CHECKOUT:MODEL, two folders that are there"
            )
        return cls(name, Path(root).resolve(), Path(model).resolve())

    def command(self, *arguments: str) -> list[str]:
        """`flatlm ARGUMENTS` of this tree."""
        return [sys.executable, "-c", MAIN, *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """That command, running."""
        env = {**os.environ, "PYTHONPATH": str(self.root)}
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )


def rates(tree: Tree, threads: int, batch: int) -> dict[str, float]:
    """Tokens a second by test, and of `batch` sequences together."""
    sizes = ("-p", "512", "-n", "128", "-r", "1", "--batch", f"1,{batch}", "-t", str(threads))
    with tree.start("bench", str(tree.model), *sizes, "-o", "json") as process:
        out = process.communicate()[0].decode()
    if process.returncode:
        raise SystemExit(f"bench_trees: {tree.name}: flatlm bench ended with {process.returncode}")
    found: dict[str, float] = {}
    for row in json.loads(out):
        if row["test"] == "sequences":
            found |= {f"{one['rows']} sequences": one["rows"] / one["seconds"] for one in row["found"]}
        else:
            found[row["test"]] = row["avg_ts"]
    return found


def first_byte(tree: Tree, threads: int) -> float:
    """Seconds from the start of a process to its first byte."""
    started = time.perf_counter()
    ask = ("generate", str(tree.model), "-p", "What is the capital of France?", "-n", "4", "-t", str(threads))
    with tree.start(*ask) as process:
        assert process.stdout
        if not os.read(process.stdout.fileno(), 1):
            raise SystemExit(f"bench_trees: {tree.name}: no answer")
        seconds = time.perf_counter() - started
        process.communicate()
    return seconds


def measure(tree: Tree, threads: int, batch: int) -> dict[str, float]:
    """All rates; the start as answers a second."""
    return {**rates(tree, threads, batch), "start to first token": 1 / first_byte(tree, threads)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Tree.parse)
    parser.add_argument("new", type=Tree.parse)
    parser.add_argument("-r", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--batch", type=int, default=8, help="sequences together (default 8)")
    parser.add_argument("--json", type=Path, help="write all rounds there")
    args = parser.parse_args()
    rounds = []
    for number in range(args.r + 1):  # the first one warms caches and counts for nothing
        pair = (args.old, args.new) if number % 2 else (args.new, args.old)
        found = {tree.name: measure(tree, args.t, args.batch) for tree in pair}
        if number:
            rounds.append(found)
            print(f"round {number} of {args.r}", file=sys.stderr, flush=True)
    print("| test | old | new | new / old, median | least … most |\n|---|---:|---:|---:|---:|")
    for test in rounds[0][args.new.name]:
        old, new = ([one[tree.name][test] for one in rounds] for tree in (args.old, args.new))
        ratios = sorted(b / a for a, b in zip(old, new, strict=True))
        print(
            f"| {test} | {statistics.median(old):.4g} | {statistics.median(new):.4g} | "
            f"{statistics.median(ratios):.3f} | {ratios[0]:.3f} … {ratios[-1]:.3f} |"
        )
    if args.json:
        args.json.write_text(json.dumps(rounds, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
