"""Does closing a model give its memory back? One process opens, answers and closes it again and again.

python scripts/memory_rounds.py MODEL [ROUNDS] [OPTION=VALUE …]       LLM's options: backend=native draft=auto
    A round: what the process holds (MB) while the model is open and answering, and after it was closed.
    resident  pages in memory (VmRSS); of them, file: mapped ones (the weights), anonymous: all others, with
              K/V caches (which Linux counts as shared)
    last/first  open in the last round by open in the first; status 1 where it is above 1.1
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

from flatlm import LLM

PROMPT = "The capital of France is"
TOKENS = 16
MOST = 1.1  # last round by first: what is kept of a closed model would show as a multiple of it


def resident() -> tuple[float, float, float]:
    """(all, anonymous, file-mapped) resident memory of this process in MB."""
    kinds = ("VmRSS:", "RssAnon:", "RssShmem:", "RssFile:")
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {words[0]: int(words[1]) / 1000 for words in map(str.split, lines) if words[0] in kinds}
    all_of_it, anonymous, shared, mapped = (sizes[kind] for kind in kinds)
    return all_of_it, anonymous + shared, mapped


def one_round(model: str, options: dict[str, Any]) -> list[tuple[float, float, float]]:
    """Memory with the model loaded, after an answer, and closed."""
    with LLM(model, **options) as llm:
        loaded = resident()
        llm.generate(PROMPT, n=TOKENS)
        answered = resident()
    del llm
    return [loaded, answered, resident()]


def main(arguments: list[str]) -> int:
    """The table of rounds; 1 where the last one holds more than MOST times the first."""
    model, *rest = arguments
    rounds = int(rest.pop(0)) if rest and rest[0].isdigit() else 4
    options = dict(word.split("=", 1) for word in rest)
    parts = ("loaded", "answered", "closed")
    print(f"{'MB: resident (anonymous, file)':<8}" + "".join(f"{part:>26}" for part in parts) + "  threads")
    before, held = resident(), []
    print(f"{'before':<30}{_shown(before):>26}")
    for number in range(1, rounds + 1):
        found = one_round(model, options)
        held.append(found[1][0])
        print(f"{number:<30}" + "".join(f"{_shown(part):>26}" for part in found), threading.active_count())
    growth = held[-1] / held[0]
    print(f"last/first {growth:.2f}")
    return int(growth > MOST)


def _shown(memory: tuple[float, float, float]) -> str:
    return "{:,.0f} ({:,.0f}, {:,.0f})".format(*memory)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
