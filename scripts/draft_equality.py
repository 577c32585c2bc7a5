"""Does every drafter write the tokens of plain greedy decoding? Many prompts, several K, several threads.

    python scripts/draft_equality.py models/qwen-1.5b --draft auto:models/qwen-0.5b \\
        --draft cascade:models/qwen-0.5b,maxgram:llama2 --gsm8k test.jsonl --humaneval HumanEval.jsonl.gz \\
        --limit 67 -n 256 -t 1,2 --out equality.jsonl

The prompts are bench_drafting.py's. Plain answers are written side by side (each is the one it would be
alone, tests/test_batch.py); drafted ones one after the other, as many processes at once as there are cores
for their threads. Every answer is a line of --out, and a killed run goes on after the last: name another
file when the code has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import compress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench_drafting import read_tasks

from runtime.artifact import open_artifact
from runtime.bench import markdown
from runtime.llm import LLM

PLAIN = "off"
BATCH = 16  # plain answers side by side


@dataclass(frozen=True)
class Written:
    """One answer. `passes` of the target wrote `written` tokens: all but the first, an ending one too."""

    draft: str
    threads: int
    task: str
    number: int
    tokens: list[int]
    reason: str  # why it ended
    written: int
    passes: int


def main() -> None:
    args = arguments()
    tasks = read_tasks(args)
    begin(args)
    cores = len(os.sched_getaffinity(0))
    write_all(args, tasks, [PLAIN], cores, 1)
    for threads in args.t:
        write_all(args, tasks, args.draft, threads, max(1, cores // threads))
    differing = report(args)
    if differing:
        sys.exit(f"{differing} answers differ from plain decoding: drafting is broken")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of the target")
    parser.add_argument("--draft", action="append", required=True, help="as `flatlm generate` takes it")
    parser.add_argument("--gsm8k", type=Path, metavar="FILE", help='JSON lines with "question"')
    parser.add_argument("--humaneval", type=Path, metavar="FILE", help="HumanEval.jsonl.gz; also the edits")
    parser.add_argument("--tasks", default="gsm8k,humaneval,edit", help="which of these (default all)")
    parser.add_argument("--limit", type=int, default=67, help="prompts of each task (default 67)")
    parser.add_argument("-n", type=int, default=256, help="most tokens of an answer (default 256)")
    parser.add_argument("-t", default="1,2", help="threads (default 1,2)")
    parser.add_argument("-c", type=int, default=1536, help="context; longer prompts are left out")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="every answer, as JSON lines")
    args = parser.parse_args()
    args.t = [int(text) for text in args.t.split(",")]
    args.c = min(args.c, open_artifact(args.model).manifest.context_length)
    return args


def begin(args: argparse.Namespace) -> None:
    """The first line of --out says what was asked: no other run goes on. A line cut by a kill is dropped."""
    names = ("model", "gsm8k", "humaneval", "tasks", "limit", "n", "c")
    asked = {name: str(getattr(args, name)) for name in names}
    held = args.out.read_bytes() if args.out.exists() else b""
    whole = held[: held.rfind(b"\n") + 1]
    if not whole:
        args.out.write_bytes(b"")
        append(args.out, asked)
    elif (found := json.loads(whole.splitlines()[0])) != asked:
        sys.exit(f"{args.out} has answers to {found}, asked is {asked}: name another --out")
    elif whole != held:
        os.truncate(args.out, len(whole))


def write_all(
    args: argparse.Namespace, tasks: dict[str, list[str]], drafts: list[str], threads: int, processes: int
) -> None:
    """The answers of each of `drafts` that --out lacks, in so many processes."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(pool.map(partial(write, args, tasks, threads), drafts))


def write(args: argparse.Namespace, tasks: dict[str, list[str]], threads: int, draft: str) -> None:
    """The answers of `draft` that --out lacks."""
    done = {(one.task, one.number) for one in read(args.out) if (one.draft, one.threads) == (draft, threads)}
    places = [(task, number) for task, texts in tasks.items() for number in range(len(texts))]
    places = [place for place in places if place not in done]
    if not places:
        return
    parent, batch = os.getppid(), BATCH if draft == PLAIN else 1
    with LLM(args.model, threads=threads, ctx=args.c, draft=draft, batch=batch) as llm:
        messages = [[{"role": "user", "content": tasks[task][number]}] for task, number in places]
        prompts = [llm.chat_prompt(one, n=args.n) for one in messages]
        fits = [len(prompt.ids) + args.n <= args.c for prompt in prompts]
        for task, number in compress(places, (draft == PLAIN and not one for one in fits)):
            print(f"{task} {number} does not fit the context, left out", file=sys.stderr)
        places, prompts = list(compress(places, fits)), list(compress(prompts, fits))
        if draft == PLAIN:
            answers = llm.answer_many(prompts)
        else:
            answers = ((i, llm.stream_prompt(prompt).run()) for i, prompt in enumerate(prompts))
        for i, answer in answers:
            drafting, written = answer.timings.drafting, answer.timings.generated_tokens - 1
            passes = drafting.target_passes if drafting else written
            tokens, reason = list(answer.tokens), answer.finish_reason
            append(args.out, asdict(Written(draft, threads, *places[i], tokens, reason, written, passes)))
            if os.getppid() != parent:  # killed: who goes on starts this process anew
                return


def append(path: Path, entry: dict[str, Any]) -> None:
    """A line, in one write: several processes do."""
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(entry) + "\n").encode())


def read(path: Path) -> list[Written]:
    """The answers in a file of which `begin` wrote the first line."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    found = (Written(**json.loads(line)) for line in lines)
    return list({(one.draft, one.threads, one.task, one.number): one for one in found}.values())


def report(args: argparse.Namespace) -> int:
    """The table, printed; how many answers differ."""
    every = read(args.out)
    plain = {(one.task, one.number): (one.tokens, one.reason) for one in every if one.draft == PLAIN}
    if not plain:
        sys.exit("no prompt fits the context with its answer: give a larger -c or a smaller -n")
    rows, total = [], 0
    for threads in args.t:
        for draft in args.draft:
            found = [one for one in every if (one.draft, one.threads) == (draft, threads)]
            differing = sum((one.tokens, one.reason) != plain[one.task, one.number] for one in found)
            written, passes = sum(one.written for one in found), sum(one.passes for one in found)
            each = f"{written / passes:.2f}" if passes else "-"
            total += differing
            rows.append([draft, str(threads), str(len(found)), str(written), each, str(differing)])
    print(markdown(["draft", "threads", "answers", "tokens", "tokens a pass", "differ"], rows, left=1))
    return total


if __name__ == "__main__":
    main()
