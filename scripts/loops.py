"""How often answers repeat themselves without end: everyday questions, greedy and as people are answered.

    python scripts/loops.py MODEL… [-n 300] [--json FILE]

An answer loops where some run of 8 words stands in it four times or more. Each of the 20 questions is asked
once by the likeliest tokens, and once as `flatlm run` asks (what the model was published with, else TALK),
with the question's number as the seed. MODEL is a name or a folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flatlm import LLM
from flatlm.runtime.format.describe import table
from flatlm.runtime.generation.published import TALK, in_words, published
from flatlm.runtime.names import resolve
from flatlm.runtime.options import SamplingOptions

WORDS, TIMES = 8, 4
BATCH = 10  # answers side by side; each is the one it would be alone
QUESTIONS = (
    "Why is the sky blue?",
    "Write a haiku about the sea.",
    "Write a long story about a dragon.",
    "Give me ten ideas for a birthday party.",
    "Explain how a bicycle stays upright.",
    "What is the difference between a virus and a bacterium?",
    "Write a poem about autumn.",
    "How do I make pancakes?",
    "Tell me about the history of Rome.",
    "What should I see in Paris in three days?",
    "Write a letter of complaint to a hotel.",
    "Explain recursion to a child.",
    "List the planets and say something about each.",
    "How does a refrigerator work?",
    "Write a Python function that reverses a list, and explain it.",
    "What are the advantages and disadvantages of nuclear power?",
    "Describe a day in the life of a cat.",
    "How can I sleep better?",
    "Summarise the plot of Romeo and Juliet.",
    "Give me a weekly training plan for beginners.",
)


def loops(text: str, words: int = WORDS, times: int = TIMES) -> bool:
    """Whether a run of so many words stands in `text` so often."""
    parts = text.split()
    runs = Counter(tuple(parts[i : i + words]) for i in range(len(parts) - words + 1))
    return max(runs.values(), default=0) >= times


def count(model: Path, n: int) -> dict[str, Any]:
    """Of one model: how many answers loop in each way, and which settings those are."""
    ways = {"greedy": SamplingOptions(), "as people are answered": published(model) or TALK}
    result: dict[str, Any] = {"model": model.name, "questions": len(QUESTIONS), "n": n}
    with LLM(model, batch=BATCH) as llm:
        for way, options in ways.items():
            prompts = [
                llm.chat_prompt([{"role": "user", "content": question}], replace(options, n=n, seed=seed))
                for seed, question in enumerate(QUESTIONS)
            ]
            looping = list[int]()
            for done, (number, answer) in enumerate(llm.answer_many(prompts), 1):
                looping += [number] * loops(answer.text)
                said = f"{model.name}, {way}: {len(looping)} of {done}"
                print(f"\r{said}", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
            which = [QUESTIONS[number] for number in sorted(looping)]
            result[way] = {"settings": in_words(options), "loops": len(which), "which": which}
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("-n", type=int, default=300, help="tokens of an answer (default 300)")
    parser.add_argument("--json", metavar="FILE", help="write the counts here too")
    args = parser.parse_args(argv)
    results = [count(resolve(model), args.n) for model in args.models]
    rows = [("model", "greedy", "as people are answered", "settings")]
    for one in results:
        greedy, talk = one["greedy"], one["as people are answered"]
        counts = (f"{way['loops']} of {one['questions']}" for way in (greedy, talk))
        rows.append((one["model"], *counts, talk["settings"]))
    print(table(rows))
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
