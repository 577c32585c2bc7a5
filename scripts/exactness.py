"""Are answers the same however they are written? Thousands of comparisons, drawn at random; none may differ.

    python scripts/exactness.py models/smollm2-edge --comparisons 10000 --seed 1
    python scripts/exactness.py models/edge models/nested --draft auto:nested --comparisons 500

What is right is written plainly: one answer at a time, one thread, a fresh sequence, no drafter. A comparison
is an answer with something else: threads, sequences side by side, a drafter, how long the pieces of a prompt
are, which answers were there before (so a prompt is found begun, or not), and neighbours that are cancelled
at a random step. Prompts begin with one of a few texts; they are answered greedily or with a seed. Tokens,
the reason for the end, and log probabilities (of some) must be equal. Several MODELs are tried one after
the other, for instance with K/V in float32 and int8. A line a campaign; status 1 where anything differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from random import Random

from bench_drafting import nothing_kept

from flatlm.runtime.generation.answer import Answer, Prompt
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import SamplingOptions

STARTS = (
    "Once upon a time there was a small machine that counted: one, two, three, one, two, three, one, two,",
    "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return",
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is",
    "A list of fruits:\n- apple\n- banana\n- cherry\n- apple\n- banana\n-",
    "Question: What is 12 + 30? Answer: 42. Question: What is 7 + 5? Answer:",
)
DRAFTS = ("off", "maxgram", "auto", "cascade:maxgram:5")
PROMPTS = 40  # of which some share their beginnings
CANCELLED = 0.15  # of the answers of a campaign with cancels


@dataclass(frozen=True)
class Campaign:
    """How its answers are written."""

    draft: str
    threads: int
    batch: int
    chunk: int  # most tokens of a prompt in one step
    cancels: bool

    def __str__(self) -> str:
        kind = f"{self.draft}, {self.threads} threads, {self.batch} side by side, pieces of {self.chunk}"
        return kind + (", cancels" if self.cancels else "")


Result = tuple[tuple[int, ...], str, tuple[object, ...]]  # ids, the reason, log probabilities


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="+")
    parser.add_argument("--comparisons", type=int, default=1000, help="of all models (default 1000)")
    parser.add_argument("--draft", action="append", default=[], help="a drafter more, as generate takes it")
    parser.add_argument("-n", type=int, default=32, help="tokens of an answer (default 32)")
    parser.add_argument("-t", type=int, default=2, help="most threads (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="draws campaigns and prompts (default 0)")
    args = parser.parse_args()
    each = -(-args.comparisons // len(args.model))
    differing = compared = 0
    with nothing_kept():
        for model in args.model:
            for found, wrong in campaigns(model, args, Random(f"{args.seed} {model}"), each):
                compared += found
                differing += wrong
    print(f"{compared} comparisons, {differing} differ")
    return int(differing > 0)


def campaigns(model: str, args: argparse.Namespace, random: Random, wanted: int) -> Iterator[tuple[int, int]]:
    """Answers compared and how many differ, of one campaign after the other until `wanted` are."""
    with LLM(model, threads=1, batch=1, draft="off") as llm:
        prompts = [drawn(llm, random, args.n) for _ in range(PROMPTS)]
        right = [plainly(llm, prompt) for prompt in prompts]
    while wanted > 0:
        campaign = Campaign(
            random.choice((*DRAFTS, *args.draft)), random.randint(1, args.t), random.choice((1, 2, 3, 5, 8)),
            random.choice((1, 3, 16, 61, 512)), random.random() < 0.5,
        )  # fmt: skip
        started = time.monotonic()
        order = random.sample(range(PROMPTS), PROMPTS)
        wrong, count = [], 0
        for number, result in written(model, campaign, [prompts[i] for i in order], random):
            count += 1
            if result != right[order[number]]:
                wrong.append(order[number])
        print(
            f"{model}: {campaign}: {count} answers, {len(wrong)} differ, {time.monotonic() - started:.1f} s"
        )
        for number in wrong:
            print(f"    prompt {number}: {prompts[number]}", file=sys.stderr)
        wanted -= count
        yield count, len(wrong)


def drawn(llm: LLM, random: Random, n: int) -> Prompt:
    """A prompt: a start cut off anywhere, perhaps with another after it; greedy or sampled."""
    text = random.choice(STARTS)[: random.randint(20, 120)]
    if random.random() < 0.4:
        text += "\n" + random.choice(STARTS)
    greedy = random.random() < 0.5
    options = SamplingOptions(
        n=random.randint(1, n),
        temp=0.0 if greedy else random.choice((0.3, 0.8, 1.2)),
        seed=random.randrange(1 << 31),
        repeat_penalty=random.choice((1.0, 1.0, 1.15)),
        logprobs=random.choice((None, None, 0, 3)),
    )
    return llm.text_prompt(text, options)


def plainly(llm: LLM, prompt: Prompt) -> Result:
    """The answer in a scheduler of its own, so that nothing was read before."""
    scheduler = Scheduler(llm.backend, llm.tokenizer)
    answer = scheduler.submit(prompt)
    while not answer.ended:
        scheduler.step()
    return result_of(answer)


def written(
    model: str, campaign: Campaign, prompts: list[Prompt], random: Random
) -> Iterator[tuple[int, Result]]:
    """(number of the prompt, its answer) of those that were not cancelled."""
    options = {"threads": campaign.threads, "batch": campaign.batch, "draft": campaign.draft}
    with closing(LLM(model, **options)) as llm:
        scheduler = Scheduler(llm.backend, llm.tokenizer, llm.speculator, chunk=campaign.chunk)
        answers = [scheduler.submit(prompt) for prompt in prompts]
        doomed = {answer: random.randint(0, 40) for answer in answers if random.random() < CANCELLED}
        if not campaign.cancels:
            doomed = {}
        steps = 0
        while not all(answer.ended for answer in answers):
            for answer, least in doomed.items():
                if steps >= least and not answer.ended:
                    scheduler.cancel(answer)
            scheduler.step()
            steps += 1
        yield from (
            (number, result_of(one)) for number, one in enumerate(answers) if one.reason != "cancelled"
        )


def result_of(answer: Answer) -> Result:
    completion = answer.completion
    return completion.tokens, completion.finish_reason, completion.logprobs


if __name__ == "__main__":
    sys.exit(main())
