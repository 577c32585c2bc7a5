"""Do the backends agree? One writes greedily; the others read that and say what they would have written.

With the same tokens forced on all, every position compares like with like, and the first position where the
likeliest token differs is also where two free greedy runs would part.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flatlm.runtime.backends import check_prompt
from flatlm.runtime.drafting.verify import invariant
from flatlm.runtime.evaluation.perplexity import log_softmax
from flatlm.runtime.generation.answer import Answer, Prompt
from flatlm.runtime.generation.sampler import demand_numbers, greedy
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.options import SamplingOptions
from flatlm.runtime.progress import Progress

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend

ROWS = 16  # positions compared at a time

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at a temperature of",
    "The three laws of motion are:\n1.",
    "Dear Sir or Madam,\n\n",
    "import numpy as np\n\ndef softmax(x):\n",
    "Q: A farmer has 12 sheep and buys 7 more. How many sheep are there?\nA:",
    "In 1969, the first person to",
    "To make a good cup of tea, you first",
    "La capitale de l'Allemagne est",
    "SELECT name, COUNT(*) FROM orders",
    "The main difference between a list and a tuple in Python is",
    "Roses are red,\nviolets are",
    "0, 1, 1, 2, 3, 5, 8, 13,",
    "Photosynthesis is the process by which",
    "中国的首都是",
    '{"name": "Ada", "born": 1815, "field":',
    "He opened the door slowly and saw",
    "The quick brown fox",
)


@dataclass(frozen=True)
class Agreement:
    """How `backend` compares with `reference` over `positions` forced tokens."""

    backend: str
    reference: str
    positions: int
    max_logit_difference: float
    mean_kl: float  # KL(reference ‖ backend) per position, nats
    max_kl: float
    top1_agreement: float  # share of positions with the same likeliest token
    equal_bits: float  # share of positions whose logits are all equal to the last bit
    identical_prompts: int  # prompts in which every token agrees
    prompts: int
    first_difference: tuple[int, int] | None  # prompt and token index, counted from 0
    seconds: float


def compare(
    backends: Mapping[str, Backend],
    prompts: Sequence[Sequence[int]],
    n: int,
    progress: Progress | None = None,
) -> list[Agreement]:
    """Let the first of `backends` write `n` tokens after each of `prompts` (ids), and the others follow.

    Raises ContextError where a prompt with its `n` tokens does not fit.
    """
    (name, reference), *others = backends.items()
    for ids in prompts:
        for backend in backends.values():
            check_prompt(backend, ids, more=n)
    parts: dict[str, list[_Part]] = {other: [] for other, _ in others}
    for i, ids in enumerate(prompts):
        written, expected = write(reference, ids, n)
        for other, backend in others:
            parts[other].append(_follow(backend, ids, written, expected))
        if progress is not None:
            progress(i + 1, len(prompts))
    return [_summary(other, name, measured) for other, measured in parts.items()]


def write(backend: Backend, ids: Sequence[int], n: int) -> tuple[list[int], np.ndarray]:
    """`n` greedy tokens after `ids`, end tokens included, and the logits [n, V] they were chosen from."""
    rows: list[np.ndarray] = []

    def sampler(logits: np.ndarray, history: Sequence[int], ids: np.ndarray | None = None) -> int:
        rows.append(np.array(logits, np.float32))
        return greedy(logits)

    answer = Answer(Prompt(ids, SamplingOptions(n=n)), law=invariant(sampler))
    return list(Scheduler(backend).write(answer)), np.stack(rows)


@dataclass(frozen=True)
class _Part:
    kl: np.ndarray  # [n]
    same: np.ndarray  # [n] bool: the likeliest token
    equal: np.ndarray  # [n] bool: all logits
    difference: float
    seconds: float


def _follow(backend: Backend, ids: Sequence[int], written: Sequence[int], expected: np.ndarray) -> _Part:
    started = time.perf_counter()
    backend.truncate(0)
    forced = np.asarray([*ids, *written[:-1]], np.int64)
    first = len(ids) - 1
    if first:
        backend.forward(forced[:first], logits=1)
    kl, same, equal, difference = [], [], [], 0.0
    for start in range(first, len(forced), ROWS):
        chunk = forced[start : start + ROWS]
        logits = backend.forward(chunk, logits=len(chunk))
        demand_numbers(float(logits.max()))
        wanted = expected[start - first : start - first + len(chunk)]
        difference = max(difference, float(np.abs(logits - wanted).max()))
        p, q = log_softmax(wanted), log_softmax(logits)
        kl.append(np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0))
        same.append(logits.argmax(axis=-1) == wanted.argmax(axis=-1))
        equal.append((logits == wanted).all(axis=-1))
    seconds = time.perf_counter() - started
    return _Part(np.concatenate(kl), np.concatenate(same), np.concatenate(equal), difference, seconds)


def _summary(name: str, reference: str, parts: Sequence[_Part]) -> Agreement:
    kl, same, equal = (np.concatenate([getattr(p, of) for p in parts]) for of in ("kl", "same", "equal"))
    apart = [(i, int(np.argmin(part.same))) for i, part in enumerate(parts) if not part.same.all()]
    return Agreement(
        backend=name,
        reference=reference,
        positions=len(same),
        max_logit_difference=max(part.difference for part in parts),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        top1_agreement=float(same.mean()),
        equal_bits=float(equal.mean()),
        identical_prompts=len(parts) - len(apart),
        prompts=len(parts),
        first_difference=apart[0] if apart else None,
        seconds=sum(part.seconds for part in parts),
    )
