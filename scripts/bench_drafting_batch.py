"""Several answers side by side, drafted and not, in turns: what drafting is worth in a batch.

    python scripts/bench_drafting_batch.py models/qwen-1.5b --draft auto:models/qwen-0.5b \\
        --gsm8k test.jsonl --humaneval HumanEval.jsonl.gz --tasks gsm8k,edit --batch 4,8 -n 128

A group is as many prompts as sequences; it is answered by both arms before the next one, in an order that
turns. A rate is tokens per second of all sequences after their first tokens, a ratio drafted / plain of one
group. Every answer must be, token for token, that of the same prompt alone and plain: differences are counted
and are an error.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench_drafting import read_tasks, task_parser

from flatlm.runtime.generation.answer import Completion, Prompt
from flatlm.runtime.llm import LLM

ARMS = ("plain", "drafted")


@dataclass(frozen=True)
class Group:
    """One group answered by one arm."""

    task: str
    batch: int
    number: int
    arm: str
    tokens: int  # written, the first of each answer not counted
    decode_seconds: float
    seconds: float  # with the reading of the prompts
    differing: int  # answers that are not those of plain decoding alone


def answer(llm: LLM, prompts: Sequence[Prompt]) -> tuple[list[Completion], float]:
    """The answers in order, and the seconds they took together."""
    started = time.perf_counter()
    answers = dict(llm.answer_many(prompts))
    return [answers[i] for i in range(len(prompts))], time.perf_counter() - started


def measure(llms: dict[str, LLM], alone: LLM, task: str, prompts: list[Prompt], number: int) -> list[Group]:
    """A group by both arms, and each prompt alone."""
    expected = [alone.stream_prompt(prompt).run().tokens for prompt in prompts]
    groups = []
    for arm in ARMS if number % 2 else ARMS[::-1]:
        answers, seconds = answer(llms[arm], prompts)
        groups.append(
            Group(
                task,
                len(prompts),
                number,
                arm,
                sum(one.timings.generated_tokens - 1 for one in answers),
                sum(one.timings.decode_seconds for one in answers),
                seconds,
                sum(one.tokens != tokens for one, tokens in zip(answers, expected, strict=True)),
            )
        )
    return groups


def table(groups: Sequence[Group]) -> str:
    """A row for each task and size."""
    lines = [
        "| task | sequences | plain t/s | drafted t/s | ratio | least … most | with prompts | differ |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for task, batch in dict.fromkeys((group.task, group.batch) for group in groups):
        plain, drafted = (
            sorted(
                (g for g in groups if (g.task, g.batch, g.arm) == (task, batch, arm)),
                key=lambda g: g.number,
            )
            for arm in ARMS
        )
        rates = [[g.tokens / g.decode_seconds for g in arm] for arm in (plain, drafted)]
        ratios = sorted(b / a for a, b in zip(*rates, strict=True))
        whole = sum(g.seconds for g in plain) / sum(g.seconds for g in drafted)
        lines.append(
            f"| {task} | {batch} | {statistics.median(rates[0]):.1f} | {statistics.median(rates[1]):.1f} | "
            f"{statistics.median(ratios):.2f} | {ratios[0]:.2f} … {ratios[-1]:.2f} | {whole:.2f} | "
            f"{sum(g.differing for g in (*plain, *drafted))} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = task_parser(__doc__)
    parser.add_argument("--draft", required=True, help="as of flatlm generate")
    parser.add_argument("--batch", default="4,8", help="sequences (default 4,8)")
    parser.add_argument("--groups", type=int, default=3, help="groups of each task and size (default 3)")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    args = parser.parse_args()
    sizes = [int(text) for text in args.batch.split(",")]
    args.limit = max(sizes) * args.groups
    tasks, groups = read_tasks(args), []
    for batch in sizes:
        with (
            LLM(args.model, threads=args.t, ctx=args.c, batch=batch) as plain,
            LLM(args.model, threads=args.t, ctx=args.c, batch=batch, draft=args.draft) as drafted,
            LLM(args.model, threads=args.t, ctx=args.c) as alone,
        ):
            for task, messages in tasks.items():
                for number in range(args.groups):
                    some = messages[number * batch : (number + 1) * batch]
                    prompts = [
                        plain.chat_prompt([{"role": "user", "content": text}], n=args.n, temp=0.0)
                        for text in some
                    ]
                    groups += measure({"plain": plain, "drafted": drafted}, alone, task, prompts, number)
                    print(f"{task}, {batch} sequences, group {number + 1} of {args.groups}", file=sys.stderr)
    print(table(groups))
    if args.json:
        args.json.write_text(
            json.dumps([asdict(group) for group in groups], indent=1) + "\n", encoding="utf-8"
        )
    return int(any(group.differing for group in groups))


if __name__ == "__main__":
    sys.exit(main())
