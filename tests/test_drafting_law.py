"""Drafted answers follow the law of plain sampling; rules that are nearly right are found out."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from flatlm.runtime.drafting import Guess, Rule
from flatlm.runtime.drafting.maxgram import MaxGram
from flatlm.runtime.drafting.model import ModelDrafter
from flatlm.runtime.drafting.spec import DraftSpec, assemble
from flatlm.runtime.drafting.verify import invariant, rejection, rest, shares_of, verify
from flatlm.runtime.generation.answer import Answer, Prompt
from flatlm.runtime.generation.sampler import draw, make_sampler, next_law
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.options import SamplingOptions
from tests.tiny_text import FakeBackend

GREEDY = SamplingOptions()


class Small(FakeBackend):
    """Three tokens; the law depends on the whole prefix and on `seed`."""

    rows: ClassVar[dict[tuple[int, ...], np.ndarray]] = {}

    def __init__(self, seed):
        super().__init__(vocab=3)
        self.seed = seed

    def row(self):
        key = (self.seed, *self.ids)
        if key not in self.rows:
            self.rows[key] = np.random.default_rng(key).standard_normal(3) * 1.2
        return self.rows[key]


FILTERS = {"temp": 0.8, "top_k": 0, "top_p": 0.95, "min_p": 0.02}
PROMPT, LENGTH, ANSWERS = [1, 2], 4, 1500  # so a draft has up to two guesses
CRITICAL = 0.001  # of a right rule one run in a thousand fails; the seeds are fixed


def exact_law():
    """{answer: probability} of plain sampling, by enumeration."""
    backend, options, laws = Small(0), SamplingOptions(**FILTERS), {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for ids, probability in laws.items():
            backend.truncate(0)
            row = backend.forward(np.array([*PROMPT, *ids]))[0]
            for token, chance in zip(*next_law(row, (), options), strict=True):
                longer[(*ids, int(token))] = probability * chance
        laws = longer
    return laws


def sampled_answers(make_rule, drafters, spec):
    """How often each answer came, over ANSWERS seeds."""
    counts = {}
    scheduler = Scheduler(Small(0), speculator=assemble(drafters, spec))
    for seed in range(ANSWERS):
        options = SamplingOptions(**FILTERS, seed=seed, n=LENGTH)
        law = make_rule(make_sampler(options), options)
        ids = tuple(scheduler.write(Answer(Prompt(PROMPT, options), law=law)))
        counts[ids] = counts.get(ids, 0) + 1
    return counts


def fits(counts, law):
    """Pearson's chi-square; answers expected fewer than 5 times count as one. True: not rejected."""
    common = [ids for ids, p in law.items() if p * ANSWERS >= 5]
    pairs = [(counts.get(ids, 0), law[ids] * ANSWERS) for ids in common]
    rare = sum(pairs[i][0] for i in range(len(pairs))), sum(e for _, e in pairs)
    if ANSWERS - rare[1] > 1:
        pairs.append((ANSWERS - rare[0], ANSWERS - rare[1]))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in pairs)
    return statistic < chi_square_quantile(len(pairs) - 1, 1 - CRITICAL)


def chi_square_quantile(freedom, share):
    """By Wilson and Hilferty's approximation; share 0.999."""
    assert share == 0.999
    return freedom * (1 - 2 / (9 * freedom) + 3.0902 * np.sqrt(2 / (9 * freedom))) ** 3


def drafters_of(shape):
    other = ModelDrafter("other", Small(1), 3)
    return {
        "maxgram": ([MaxGram(np.array([1, 2, 0]))], DraftSpec(("maxgram",), ((2,),), 1.0)),
        "model": ([other], DraftSpec(("m",), ((2,),), 1.0)),
        "cascade": ([other, MaxGram(np.arange(3))], DraftSpec(("m", "maxgram"), ((1, 1), (2,)), 1.0)),
        "lenient": ([other, MaxGram(np.arange(3))], DraftSpec(("m", "maxgram"), ((1, 1), (2,)), 4.0)),
        "auto": ([other, MaxGram(np.arange(3))], DraftSpec(("m", "maxgram"))),
    }[shape]


def seeded(options):
    return np.random.default_rng([options.seed, 5])


RIGHT = {
    "invariant": lambda sampler, options: invariant(sampler),
    "rejection": lambda sampler, options: rejection(options, seeded(options)),
}


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        ("invariant", "cascade"),
        *(("rejection", s) for s in ("maxgram", "model", "cascade", "lenient", "auto")),
    ],
)
def test_drafted_answers_follow_the_law_of_plain_sampling(rule, shape):
    assert fits(sampled_answers(RIGHT[rule], *drafters_of(shape)), exact_law())


def keeps_too_much(sampler, options):
    """Keeps a drawn guess where p ≥ q / 2, and draws from p itself otherwise."""
    random, right = seeded(options), rejection(options, seeded(options))

    def judge(logits, history, guess):
        law = next_law(logits, history, options)
        if guess is not None and shares_of(law, np.array([guess.token]))[0] > 0.3:
            return guess.token
        return draw(law, random.random())

    return Rule(right.choose, judge)


def draws_again_from_p(sampler, options):
    """Rejects rightly, but draws the next token from p and not from what is left of it."""
    random, right = seeded(options), rejection(options, seeded(options))

    def judge(logits, history, guess):
        law = next_law(logits, history, options)
        if guess is not None:
            p = shares_of(law, np.array([guess.token]))[0]
            q = shares_of(guess.law, np.array([guess.token]))[0]
            if random.random() * q < p:
                return guess.token
        return draw(law, random.random())

    return Rule(right.choose, judge)


def forgets_the_law_of_the_guess(sampler, options):
    """Keeps a drawn guess as if nothing had been left to chance in it, but rejects it as a drawn one."""
    random, right = seeded(options), rejection(options, seeded(options))

    def judge(logits, history, guess):
        law = next_law(logits, history, options)
        if guess is None:
            return draw(law, random.random())
        if random.random() < shares_of(law, np.array([guess.token]))[0]:
            return guess.token
        return draw(rest(law, guess.law), random.random())

    return Rule(right.choose, judge)


@pytest.mark.parametrize("wrong", [keeps_too_much, draws_again_from_p, forgets_the_law_of_the_guess])
def test_a_wrong_rule_is_found_out(wrong):
    assert not fits(sampled_answers(wrong, *drafters_of("model")), exact_law())


def test_rejection_keeps_a_guess_as_often_as_any_rule_can():
    options, kept = SamplingOptions(**{**FILTERS, "top_k": 0, "top_p": 1.0, "min_p": 0.0}), 0
    p, q = np.log(np.float32([0.5, 0.3, 0.2])), np.log(np.float32([0.2, 0.3, 0.5]))
    rule = rejection(options, np.random.default_rng(0))
    for _ in range(3000):
        token, law = rule.choose(q, (), np.arange(3))
        kept += rule.judge(p, (), Guess(token, "m", law=law)) == token
    shares = [next_law(row, (), options)[1] for row in (p, q)]
    assert kept / 3000 == pytest.approx(np.minimum(*shares).sum(), abs=0.03)


def test_under_greedy_sampling_both_rules_are_comparison():
    rows = np.eye(4, dtype=np.float32)[[2, 1, 3]] * 5
    guesses = [Guess(2, "m"), Guess(0, "m")]
    for rule in (invariant(make_sampler(GREEDY)), rejection(GREEDY, np.random.default_rng(0))):
        assert verify(rows, guesses, rule.judge, [1]) == [2, 1]
