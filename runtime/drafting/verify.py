"""What the target does with guesses: it keeps those that it would have written, and adds a token of its own.

Two rules, both lossless. `invariant`: drafters and target choose with the same sampler and so with the same
noise; a guess is kept where it is the very token the target chooses. The answer is, token for token, the one
without drafting, sampled or not (drafter-invariant speculative decoding, arXiv 2408.07978; for a guess that
nothing was left to chance in, the chance to be kept is p(x), that of the one-hot rule). `rejection`: the rule
of Leviathan et al. 2022 (arXiv 2211.17192), which keeps the most guesses that any rule can, but gives the law
of plain sampling and not its very tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from flatlm.runtime.drafting import Guess, Judge, Rule
from flatlm.runtime.generation.constraint import Constraint, constrained, held_law
from flatlm.runtime.generation.sampler import (
    Law,
    Sampler,
    draw,
    find,
    make_sampler,
    next_law,
)
from flatlm.runtime.options import SamplingOptions


def verify(
    rows: np.ndarray,
    guesses: Sequence[Guess],
    judge: Judge,
    history: Sequence[int],
    stop_ids: Collection[int] = frozenset(),
) -> list[int]:
    """The tokens that follow `history`: the guesses that are kept, and one more, or up to a stop id.

    `rows` float32 [1 + guesses, V] are the target's logits after `history` and after each guess.
    """
    past, written = list(history), []
    for i, row in enumerate(rows):
        guess = guesses[i] if i < len(guesses) else None
        number = judge(row, past, guess)
        written.append(number)
        past.append(number)
        if guess is None or number != guess.token or number in stop_ids:
            break
    return written


def rule_of(name: str, options: SamplingOptions, constraint: Constraint | None = None) -> Rule:
    """The rule of DraftOptions by its name, for one answer; `options` have a seed."""
    if name != "invariant":
        return rejection(options, np.random.Generator(np.random.PCG64(options.seed)), constraint)
    sampler = make_sampler(options) if constraint is None else constrained(options, constraint)
    return invariant(sampler)._replace(options=options, constraint=constraint)


def invariant(sampler: Sampler) -> Rule:
    """Everyone uses `sampler`, whose noise belongs to the position."""
    return Rule(
        lambda logits, history, ids: (sampler(logits, history, ids), None),
        lambda logits, history, guess: sampler(logits, history),
    )


def rejection(
    options: SamplingOptions, random: np.random.Generator, constraint: Constraint | None = None
) -> Rule:
    """A guess x drawn from q is kept with min(1, p(x) / q(x)), else the token is drawn from max(0, p - q).

    `constraint` and the filters of `options` are applied to p and to q. A guess without a law counts as
    q(x) = 1.
    """

    def law_of(logits: np.ndarray, history: Sequence[int], ids: np.ndarray | None = None) -> Law:
        if constraint is not None:
            return held_law(constraint, logits, history, options, ids)
        return next_law(logits, history, options, ids)

    def choose(logits: np.ndarray, history: Sequence[int], ids: np.ndarray) -> tuple[int, Law | None]:
        law = law_of(logits, history, ids)
        return draw(law, random.random()), law

    def judge(logits: np.ndarray, history: Sequence[int], guess: Guess | None) -> int:
        law = law_of(logits, history)
        if guess is None:
            return draw(law, random.random())
        drafted = guess.law or (np.array([guess.token]), np.ones(1))
        p, q = (float(shares_of(one, np.array([guess.token]))[0]) for one in (law, drafted))
        if random.random() * q < p:
            return guess.token
        return draw(rest(law, drafted), random.random())

    return Rule(choose, judge, options, constraint)


def rest(law: Law, drafted: Law) -> Law:
    """The law proportional to max(0, p - q)."""
    ids, shares = law
    left = np.maximum(shares - shares_of(drafted, ids), 0.0)
    total = left.sum()
    return (ids, left / total) if total > 0 else law  # p = q up to rounding: then nothing was to be rejected


def shares_of(law: Law, wanted: np.ndarray) -> np.ndarray:
    """The probabilities of the ids `wanted`; 0 for those the law does not have."""
    ids, shares = law
    places, there = find(ids, wanted)
    return np.where(there, shares[places], 0.0)
