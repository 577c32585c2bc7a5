"""Does every drafter write the tokens of plain greedy decoding? Many prompts, several K, several threads.

    python scripts/draft_equality.py models/qwen-1.5b --draft auto:models/qwen-0.5b \\
        --draft cascade:models/qwen-0.5b,maxgram:llama2 --gsm8k test.jsonl --humaneval HumanEval.jsonl.gz \\
        --limit 67 -n 256 -t 1,2 --out equality

The prompts are bench_drafting.py's. Plain answers are written side by side (each is the one it would be
alone, tests/test_batch.py); drafted ones --batch at a time, 1 if not given, as many processes at once as
there are cores for their threads. Every drafter has a file of its answers in the folder --out, and a killed
run goes on after the last ones: name another folder when the code has changed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import compress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench_drafting import nothing_kept, read_tasks, task_parser

from flatlm.runtime.errors import UsageError
from flatlm.runtime.evaluation.run_file import RunFile
from flatlm.runtime.format.artifact import read_manifest
from flatlm.runtime.llm import LLM
from flatlm.runtime.measuring.bench import markdown

PLAIN = "off"
BATCH = 16  # plain answers side by side

Answers = list[dict[str, Any]]  # see `write`


def main() -> None:
    args = arguments()
    tasks = read_tasks(args)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        (plain,) = write_all(args, tasks, [PLAIN], len(os.sched_getaffinity(0)))
        if not plain:
            sys.exit("no prompt fits the context with its answer: give a larger -c or a smaller -n")
        drafted = {threads: write_all(args, tasks, args.draft, threads) for threads in args.t}
    except UsageError as error:
        sys.exit(str(error))
    rows = [
        [draft, str(threads), *compared(plain, answers)]
        for threads, found in drafted.items()
        for draft, answers in zip(args.draft, found, strict=True)
    ]
    print(markdown(["draft", "threads", "answers", "tokens", "tokens a pass", "differ"], rows, left=1))
    if differing := sum(int(row[-1]) for row in rows):
        sys.exit(f"{differing} answers differ from plain decoding: drafting is broken")


def arguments() -> argparse.Namespace:
    parser = task_parser(__doc__, limit=67)
    parser.add_argument("--draft", action="append", required=True, help="as `flatlm generate` takes it")
    parser.add_argument("--batch", type=int, default=1, help="drafted answers side by side (default 1)")
    parser.add_argument("-t", default="1,2", help="threads (default 1,2)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where answers are kept")
    args = parser.parse_args()
    args.t = [int(text) for text in args.t.split(",")]
    args.c = min(args.c, read_manifest(args.model).context_length)
    return args


def write_all(
    args: argparse.Namespace, tasks: dict[str, list[str]], drafts: Sequence[str], threads: int
) -> list[Answers]:
    """The answers of each of `drafts`, as many at once as there are cores for."""
    processes = max(1, len(os.sched_getaffinity(0)) // threads)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return list(pool.map(partial(write, args, tasks, threads), drafts))


def write(args: argparse.Namespace, tasks: dict[str, list[str]], threads: int, draft: str) -> Answers:
    """The answers of `draft`; those that its file has already are not written again.

    `passes` of the target wrote `written` tokens: all but the first, an ending one too.
    """
    names = ("model", "gsm8k", "humaneval", "tasks", "limit", "n", "c", "batch")
    settings = {"draft": draft, "threads": threads, **{name: str(getattr(args, name)) for name in names}}
    path = args.out / f"{threads}-{re.sub('[^a-zA-Z0-9.,-]+', '_', draft)}.jsonl"
    with RunFile(path, settings) as file:
        done = {(one["task"], one["number"]) for one in file.records}
        places = [(task, number) for task, texts in tasks.items() for number in range(len(texts))]
        places = [place for place in places if place not in done]
        if places:
            answer(args, tasks, places, draft, threads, file)
        return file.records


def answer(
    args: argparse.Namespace,
    tasks: dict[str, list[str]],
    places: list[tuple[str, int]],
    draft: str,
    threads: int,
    file: RunFile,
) -> None:
    parent, batch = os.getppid(), BATCH if draft == PLAIN else args.batch
    with nothing_kept(), LLM(args.model, threads=threads, ctx=args.c, draft=draft, batch=batch) as llm:
        messages = [[{"role": "user", "content": tasks[task][number]}] for task, number in places]
        prompts = [llm.chat_prompt(one, n=args.n) for one in messages]
        fits = [len(prompt.ids) + args.n <= args.c for prompt in prompts]
        for task, number in compress(places, (draft == PLAIN and not one for one in fits)):
            print(f"{task} {number} does not fit the context, left out", file=sys.stderr)
        places, prompts = list(compress(places, fits)), list(compress(prompts, fits))
        for i, one in llm.answer_many(prompts):
            drafting, written = one.timings.drafting, one.timings.generated_tokens - 1
            file.append({
                "task": places[i][0],
                "number": places[i][1],
                "tokens": list(one.tokens),
                "reason": one.finish_reason,
                "written": written,
                "passes": drafting.target_passes if drafting else written,
            })  # fmt: skip
            if os.getppid() != parent:  # killed: who goes on starts this process anew
                return


def compared(plain: Answers, drafted: Answers) -> list[str]:
    """Cells of the table: answers, their tokens, tokens a pass, how many differ."""
    right = {(one["task"], one["number"]): (one["tokens"], one["reason"]) for one in plain}
    differing = sum((one["tokens"], one["reason"]) != right[one["task"], one["number"]] for one in drafted)
    written, passes = (sum(one[name] for one in drafted) for name in ("written", "passes"))
    return [str(len(drafted)), str(written), f"{written / passes:.2f}" if passes else "-", str(differing)]


if __name__ == "__main__":
    main()
