"""Would verifying a tree of guesses pay, where a pass over more rows costs more? Measured, then simulated.

    python scripts/tree_gain.py models/qwen-1.5b --drafter models/qwen-0.5b --gsm8k test.jsonl \\
        --humaneval HumanEval.jsonl.gz --limit 40 -n 256 -t 2 --json tree.json

Measured: the target's greedy answers to the prompts of bench_drafting.py; what the drafting model, reading
the same text, takes for the likeliest and the second likeliest token at each place; seconds of the target's
passes over 1 … ROWS rows and of the drafter's over one. Simulated from those, over all answers: a chain of
the drafter's likeliest tokens, as long as each has a probability of at least τ; and the cheapest kind of
tree, a chain with the second likeliest token as a leaf beside each place where that has at least τ2. A pass
then costs a row more for each leaf, and a guess that fails is made good by its leaf. (Branches that go on
after a leaf would cost passes of the drafter, too.) Both get the best τ and length there are, in tokens a
second; masks and positions of a tree would cost it more, which is not counted.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_drafting import encode, open_native, read_tasks, task_parser

from flatlm.runtime.backends import Backend
from flatlm.runtime.drafting.short_head import ShortHead, with_short_head
from flatlm.runtime.drafting.spec import NESTED, beside, inside
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.generation.answer import Answer, Prompt
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.measuring import rows
from flatlm.runtime.measuring.bench import markdown
from flatlm.runtime.options import SamplingOptions
from flatlm.runtime.progress import ProgressLine
from flatlm.runtime.text import prompt
from flatlm.runtime.text.tokenizer import Tokenizer, load_tokenizer

ROWS, ROUNDS = 24, 3
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12)
FIRST = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9)  # τ
SECOND = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # τ2
CHAIN = 1.1  # a τ2 that no second guess has


@dataclass(frozen=True)
class Places:
    """An answer's tokens as the drafting model sees them."""

    first: np.ndarray  # bool [n]: its likeliest token is the answer's
    second: np.ndarray  # bool [n]: its second likeliest is
    p1: np.ndarray  # [n]
    p2: np.ndarray


@dataclass(frozen=True)
class Costs:
    """Seconds."""

    target: np.ndarray  # [ROWS + 1], by rows
    drafter: float  # of a pass over one row


def main() -> None:
    args = arguments()
    model = open_artifact(args.model)
    tokenizer = load_tokenizer(args.model)
    other = inside(model) if args.drafter == NESTED else beside(model, args.drafter, tokenizer)
    args.c = min(args.c, other.manifest.context_length)
    with ExitStack() as stack:
        target = stack.enter_context(closing(open_native(model, args)))
        drafter = stack.enter_context(closing(with_short_head(other, lambda one: open_native(one, args))))
        costs = Costs(seconds(target, ROWS), seconds(drafter, 1)[1])
        answers = read(args, target, drafter, tokenizer)
    plain = costs.target[1]
    print("rows     " + " ".join(f"{m:5d}" for m in (1, 2, 3, 4, 6, 8, 12, 16, 24)))
    print("cost     " + " ".join(f"{costs.target[m] / plain:5.2f}" for m in (1, 2, 3, 4, 6, 8, 12, 16, 24)))
    print(f"drafter  {costs.drafter / plain:5.2f}\n")
    lines, result = [], {}
    for task, places in answers.items():
        chain, tree = best(places, costs, [CHAIN]), best(places, costs, SECOND)
        wrong = ~np.concatenate([p.first for p in places])
        saved = np.concatenate([p.second for p in places])[wrong].sum() / max(1, wrong.sum())
        lines.append([
            task, f"{1 - wrong.mean():.1%}", f"{saved:.1%}", f"{chain[0] * plain:.3f}",
            f"{tree[0] * plain:.3f}", f"{tree[0] / chain[0] - 1:+.1%}", f"{chain[1][:2]}", f"{tree[1]}",
        ])  # fmt: skip
        result[task] = {"likeliest": 1 - wrong.mean(), "second": saved, "chain": chain, "tree": tree}
    head = ["task", "likeliest is right", "else second is", "chain, × plain", "tree, × plain", "gain"]
    print(markdown([*head, "chain: length, τ", "tree: length, τ, τ2"], lines, left=1))
    if args.json:
        found = {"target": costs.target.tolist(), "drafter": costs.drafter, "tasks": result}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = task_parser(__doc__)
    parser.add_argument("--drafter", required=True, metavar="FOLDER", help="or `nested`")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    return parser.parse_args()


# ---- measured
def seconds(backend: Backend, most: int) -> np.ndarray:
    """Of passes over 0 (none), 1 … `most` rows after 256 tokens, [most + 1]."""
    costs = rows.measure(backend, range(1, most + 1), ROUNDS, depth=256)
    return np.array([0.0, *(cost.seconds for cost in costs)])


def read(
    args: argparse.Namespace, target: Backend, drafter: Backend, tokenizer: Tokenizer
) -> dict[str, list[Places]]:
    template = prompt.load_template(args.model)
    tasks = read_tasks(args)
    answers: dict[str, list[Places]] = {}
    with ProgressLine("reading", "prompts") as progress:
        for task, messages in tasks.items():
            for number, message in enumerate(messages):
                ids = encode(tokenizer, template, message)
                if len(ids) + args.n <= target.context:
                    asked = Answer(Prompt(ids, SamplingOptions(n=args.n)), tokenizer.eos_ids)
                    written = list(Scheduler(target).write(asked))
                    answers.setdefault(task, []).append(places(drafter, ids, written))
                progress(number + 1, len(messages))
    return answers


def places(drafter: Backend, ids: Sequence[int], written: Sequence[int]) -> Places:
    drafter.truncate(0)
    drafter.forward(np.array(ids[:-1]))
    read = [ids[-1], *written[:-1]]
    found = [likeliest_two(drafter, one) for one in read]
    guessed, chances = np.array([two for two, _ in found]), np.array([two for _, two in found])
    right = guessed == np.array(written)[:, None]
    return Places(*right.T, *chances.T)


def likeliest_two(drafter: Backend, last: int) -> tuple[np.ndarray, np.ndarray]:
    """The two likeliest ids after `last`, the likeliest first, and their chances: [2], [2]."""
    (row,) = drafter.forward(np.array([last]))
    top = np.argpartition(row, -2)[:-3:-1]
    chances = np.exp(row - row.max())
    ids = drafter.ids[top] if isinstance(drafter, ShortHead) else top
    return ids, chances[top] / chances.sum()


# ---- simulated
def best(
    answers: Sequence[Places], costs: Costs, second: Sequence[float]
) -> tuple[float, tuple[int, float, float]]:
    """Tokens a second of the best (length, τ, τ2), and it."""
    ways = itertools.product(LENGTHS, FIRST, second)
    return max((pace(answers, costs, *way), way) for way in ways)


def pace(answers: Sequence[Places], costs: Costs, length: int, least: float, second: float) -> float:
    """Tokens a second."""
    tokens, time_taken = 0, 0.0
    for one in answers:
        at = 0
        while at < len(one.first):
            drafted = read_rows = 0
            kept, alive = 0, True
            for place in range(at, min(at + length, len(one.first))):
                drafted += 1
                if one.p1[place] < least:  # seen only when the pass is made
                    break
                leaf = one.p2[place] >= second
                read_rows += 1 + leaf
                if alive:
                    alive = bool(one.first[place])
                    kept += alive or (leaf and bool(one.second[place]))
            time_taken += drafted * costs.drafter + costs.target[min(1 + read_rows, ROWS)]
            written = min(kept + 1, len(one.first) - at)
            tokens, at = tokens + written, at + written
    return tokens / time_taken


if __name__ == "__main__":
    main()
