"""Does anything grow? Mixed answers for minutes, with what the process holds beside what it held at first.

    python scripts/soak.py models/smollm2-edge --minutes 30
    python scripts/soak.py models/qwen-1.5b --drafter models/qwen-0.5b --minutes 30

Rounds follow each other: a model is opened with a drafter or none, with one sequence or several; answers are
streamed, written side by side, cancelled in the midst or left unread; it is closed. After each: anonymous
memory, open files, threads, mappings. The first minute (`--warm-up` seconds) may grow; after it the mean of
the last tenth may not be more than 2 % above that of the first. Status 1 where it is.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from random import Random

from bench_drafting import nothing_kept
from memory_rounds import resident

from flatlm import LLM

GROWTH = 1.02
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time there was a small machine that counted: one, two, three, one, two, three,",
    "A list of fruits:\n- apple\n- banana\n- cherry\n-",
)
Held = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--drafter", help="an artifact with the same tokenizer")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--warm-up", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    drafts = ["off", "maxgram", "auto"] + ([f"auto:{args.drafter}"] if args.drafter else [])
    random, started, rounds = Random(args.seed), time.monotonic(), 0
    seen: list[Held] = []
    with nothing_kept():
        while (passed := time.monotonic() - started) < args.warm_up + 60 * args.minutes:
            one_round(args.model, random.choice(drafts), random.choice((1, 4)), random)
            rounds += 1
            if passed > args.warm_up:
                seen.append(held())
    return judged(seen, rounds)


def one_round(model: str, draft: str, batch: int, random: Random) -> None:
    """A model opened, a few answers of every kind, closed."""
    with LLM(model, draft=draft, batch=batch, threads=random.randint(1, 2), ctx=1024) as llm:
        for _ in range(random.randint(1, 4)):
            prompt, n = random.choice(PROMPTS), random.randint(1, 48)
            match random.randrange(4):
                case 0:
                    llm.generate(prompt, n=n, temp=random.choice((0.0, 0.8)))
                case 1:
                    many = (llm.text_prompt(random.choice(PROMPTS), n=n, temp=0.8) for _ in range(6))
                    for _ in llm.answer_many(many):
                        pass
                case 2:
                    stream = llm.stream(prompt, n=n)
                    with contextlib.suppress(StopIteration):
                        next(stream)
                    threading.Thread(target=stream.cancel).start()
                    stream.run()
                case _:
                    next(llm.stream(prompt, n=48), None)  # left unread


def held() -> Held:
    """Of this process: MB of its own memory, open files, threads, mappings."""
    return {
        "anonymous MB": resident()[1],
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "mappings": len(Path("/proc/self/maps").read_text().splitlines()),
    }


def judged(seen: list[Held], rounds: int) -> int:
    """A table: at first, at last, most. 1 where the last is more than GROWTH times the first."""
    part = max(1, len(seen) // 10)
    print(f"{rounds} rounds, {len(seen)} of them looked at\n")
    print("| held | first tenth | last tenth | most | ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    grown = False
    for name in seen[0]:
        first, last = (sum(one[name] for one in some) / len(some) for some in (seen[:part], seen[-part:]))
        most, ratio = max(one[name] for one in seen), last / first
        grown |= ratio > GROWTH
        print(f"| {name} | {first:.1f} | {last:.1f} | {most:.1f} | {ratio:.3f} |")
    return int(grown)


if __name__ == "__main__":
    sys.exit(main())
