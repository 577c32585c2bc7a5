"""Faults on purpose: scripts/chaos export pull --rounds 100 --seed 1"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from tests.chaos.faults import possible
from tests.chaos.trial import Trials
from tests.chaos.victims import VICTIMS

MOST_FAULTS = 3  # one after the other, in a trial


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("victim", nargs="+", choices=[*VICTIMS, "all"], help="the commands to try")
    parser.add_argument("--rounds", type=int, default=20, help="faults for each command (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="draws faults and moments (default 0)")
    parser.add_argument("--faults", default=",".join(possible()), help="which (default %(default)s)")
    args = parser.parse_args()
    faults = args.faults.split(",")
    if unknown := set(faults) - set(possible()):
        parser.error(f"cannot do {', '.join(sorted(unknown))} here; there are {', '.join(possible())}")
    names = list(VICTIMS) if "all" in args.victim else args.victim
    print("| command    | faults | struck | of each kind | wrong | seconds |")
    print("| ---------- | -----: | -----: | ------------ | ----: | ------: |")
    wrong = sum(_tried(name, faults, args.rounds, Random(f"{args.seed} {name}")) for name in names)
    return int(wrong > 0)


def _tried(name: str, faults: list[str], rounds: int, random: Random) -> int:
    """A line of the table: how many things were wrong, each told on stderr."""
    folder, started = Path(tempfile.mkdtemp(prefix="flatlm-chaos-")), time.monotonic()
    kinds, struck, wrong = Counter[str](), 0, 0
    try:
        trials = Trials(VICTIMS[name], folder)
        while kinds.total() < rounds:
            chosen = random.choices(faults, k=min(random.randint(1, MOST_FAULTS), rounds - kinds.total()))
            found, hit = trials.try_faults(chosen, random)
            kinds.update(chosen)
            struck += hit
            wrong += len(found)
            for what in found:
                print(f"{name}: {what}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    each = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    seconds = time.monotonic() - started
    print(f"| {name:<10} | {kinds.total()} | {struck} | {each} | {wrong} | {seconds:.0f} |", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
