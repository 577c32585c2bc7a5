"""Drafts for several sequences at once: the answers of plain decoding, a pass for all, what pays."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.runtime.backends import Segment
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.drafting import Ask, Guess, Offer
from flatlm.runtime.drafting.auto import Auto
from flatlm.runtime.drafting.cascade import PUBLISHED
from flatlm.runtime.drafting.costs import Costs
from flatlm.runtime.drafting.maxgram import MaxGram
from flatlm.runtime.drafting.model import ModelDrafter
from flatlm.runtime.drafting.schedule import Schedule
from flatlm.runtime.drafting.spec import DraftSpec, assemble
from flatlm.runtime.drafting.speculator import Speculator
from flatlm.runtime.drafting.verify import invariant
from flatlm.runtime.generation.sampler import make_sampler
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.generation.sequence import Slots, TokenSequence
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import SamplingOptions
from tests.interrupts import interrupted_after
from tests.test_batch import alone, jobs, writer
from tests.test_drafting_simulated import Clock
from tests.test_nested import exported
from tests.tiny_graphs import CONTEXT, VOCABULARY, quantized_graph
from tests.tiny_text import FakeBackend

TARGET, SLOTS = 9, 4
GREEDY = invariant(make_sampler(SamplingOptions()))


def tiny(seed):
    return SimpleNamespace(graph=quantized_graph(seed))


def drafters(shape):
    """Over tiny models with as many slots as the target; any pass takes 1 s."""

    def model(seed):
        backend = NumpyBackend(tiny(seed), slots=SLOTS)
        return ModelDrafter(f"model {seed}", backend, VOCABULARY, itertools.count().__next__)

    return {
        "maxgram": lambda: ([MaxGram()], DraftSpec(("maxgram",))),
        "bigrams": lambda: ([MaxGram(np.arange(VOCABULARY)[::-1])], DraftSpec(("maxgram",))),
        "itself": lambda: ([model(TARGET)], DraftSpec(("m",), ((6,),), 1.0)),
        "auto": lambda: ([MaxGram(), model(TARGET), model(5)], DraftSpec(("maxgram", "m", "m"))),
        "static": lambda: ([model(5), MaxGram()], DraftSpec(("m", "maxgram"), ((4, 3), (5,)), 3.0)),
        "three": lambda: ([model(TARGET), model(5), MaxGram()], DraftSpec(("m",) * 3, *PUBLISHED["flan-t5"])),
    }[shape]()


SHAPES = ("maxgram", "bigrams", "itself", "auto", "static", "three")


def come_and_go(scheduler, given, chance):
    """The answers to jobs that join at random times, some of which are cancelled."""
    answers, waiting, written = [], list(given), {}
    while waiting or scheduler.count:
        while waiting and chance.random() < 0.5:
            answers.append(scheduler.add(writer(*waiting.pop(0))))
        for one, ids in scheduler.step():
            written.setdefault(one, []).extend(ids)
            if chance.random() < 0.08:
                scheduler.cancel(one)
    return answers, [written.get(one, []) for one in answers]


@pytest.fixture(scope="module")
def expected():
    backend = NumpyBackend(tiny(TARGET))
    given = jobs(7, 14, CONTEXT)
    return given, [alone(backend, job) for job in given]


@pytest.mark.parametrize("make", [NumpyBackend, NativeBackend])
@pytest.mark.parametrize("shape", SHAPES)
def test_drafted_answers_side_by_side_are_those_of_plain_decoding(expected, shape, make):
    given, right = expected
    speculator = assemble(*drafters(shape), clock=itertools.count().__next__)
    for leaf in speculator.leaves:  # nothing is known of lengths: reading must not wait
        if leaf.costs is not None:
            leaf.costs.add(1, 0.1)
            leaf.costs.add(40, 0.2)
    scheduler = Scheduler(make(tiny(TARGET), threads=2, slots=SLOTS), speculator=speculator, chunk=5)
    answers, found = come_and_go(scheduler, given, random.Random(3))
    assert any(answer.cancelled for answer in answers)
    for answer, ids, whole in zip(answers, found, right, strict=True):
        assert ids == (whole[: len(ids)] if answer.cancelled else whole)
    drafted = [answer.timings.drafting for answer in answers if answer.drafted is not None]
    assert sum(timings.drafted for timings in drafted) > 0
    assert (
        shape == "static" or sum(timings.accepted for timings in drafted) > 0
    )  # another model is never right


@pytest.mark.parametrize("shape", ["maxgram", "auto", "static"])
def test_after_an_interrupt_anywhere_in_drafting_the_next_answers_are_right(expected, shape):
    given, right = expected
    functions = (
        *(Scheduler._step, Scheduler._take, Scheduler._verified, Scheduler._admit, Slots.place),
        *(ModelDrafter._pass, ModelDrafter._prefill, ModelDrafter._follow, TokenSequence.become),
        *(Slots.cut_back, Slots.rest, Slots.unread),
    )
    speculator = assemble(*drafters(shape), clock=itertools.count().__next__)
    scheduler, count = Scheduler(NumpyBackend(tiny(TARGET), slots=2), speculator=speculator, chunk=5), 0
    for lines in range(5, 400, 19):
        with interrupted_after(lines, *functions) as came:
            for job in given[:3]:
                scheduler.add(writer(*job))
            while scheduler.count:
                scheduler.step()
        count += bool(came)
        scheduler.clear()
        number = lines % len(given)
        assert list(scheduler.write(writer(*given[number]))) == right[number]
    assert count > 10


def test_an_interrupt_while_a_slot_is_given_leaves_no_slot_that_holds_what_it_does_not():
    """Copying begins when nothing is noted of the slot any longer."""
    count = 0
    for lines in range(40):
        scheduler = Scheduler(FakeBackend(slots=2))
        for prompt in ([3, 4, 5, 6, 7], [8, 9, 10, 11]):
            list(scheduler.write(writer(prompt, n=3)))
        with interrupted_after(lines, Slots.place) as came:
            scheduler.add(writer([3, 4, 5, 6, 20], n=9))
            scheduler.add(writer([3, 4, 5, 6, 21], n=9))
            for _ in range(3):
                scheduler.step()
        scheduler.clear()
        count += bool(came)
        for prompt in ([8, 9, 10, 11, 1], [3, 4, 5, 6, 22], [3, 4, 5, 6, 7, 1]):
            job = (prompt, SamplingOptions(), 4, ())
            assert list(scheduler.write(writer(*job))) == alone(FakeBackend(), job)
    assert count > 5


# ---- one pass for all


class Watched(FakeBackend):
    """The same logits for everyone who has read as much; notes how many sequences a pass has."""

    def row(self):
        return np.random.default_rng(len(self.ids)).standard_normal(self.vocab)


@pytest.mark.parametrize("spec", [DraftSpec(("m",), ((3,),), 1.0), DraftSpec(("m",))])
def test_a_model_drafts_for_all_sequences_in_one_pass_a_depth(spec):
    small = Watched(slots=3)
    model = ModelDrafter("m", small, 300, clock=itertools.count().__next__, size=0.01)
    schedule = Schedule()
    for rows in (1, 3, 20):
        schedule.target.add(rows, 30.0)
    model.costs.add(1, 0.5)
    model.costs.add(40, 1.0)
    speculator = assemble([model], spec, itertools.count(0, 30).__next__, schedule)
    scheduler = Scheduler(Watched(slots=3), speculator=speculator)
    answers = [scheduler.add(writer([5, 6, 7 + i], n=40)) for i in range(3)]
    while scheduler.count:
        scheduler.step()
    together = [step for step in small.steps if len(step) == 3]
    assert len(together) > 8
    assert len(together) > 3 * sum(len(step) < 3 for step in small.steps[3:])  # beside reading
    assert all(answer.timings.drafting.accepted > 10 for answer in answers)


def test_of_all_that_was_thought_of_the_likeliest_guesses_are_read_whosever_they_are():
    schedule = Schedule()
    for rows, seconds in ((2, 1.0), (5, 1.3), (6, 9.0)):  # a step after five rows, as tiles have
        schedule.target.add(rows, seconds)
    auto = Auto(schedule, [Both([0.9, 0.9, 0.5], [0.6, 0.5])])
    asks = [Ask(auto.begin(GREEDY), ids, 9) for ids in ([1], [2])]
    drafts = auto.propose(asks)
    assert [len(draft.considered) for draft in drafts] == [3, 2]
    assert [len(draft.guesses) for draft in drafts] == [2, 1]  # .9, .81 and .6; .405 and .3 have no room


class Both:
    """A drafter without costs whose chances are given for the sequences that begin with 1 and with 2."""

    name, costs, passes, seconds, loading = "both", None, 0, 0.0, 0.0

    def __init__(self, one, two):
        self.lists = {1: one, 2: two}
        every = sorted({*one, *two})
        self.assumed = dict(enumerate(every))
        self.trust = {chance: number for number, chance in self.assumed.items()}

    def begin(self, rule): ...

    def end(self, state): ...

    def close(self): ...

    def offer(self, place, known):
        chances = self.lists[place.ids[0]][len(place.ids) - 1 :]
        guesses = [Guess(50 + i, self.name, trust=self.trust[c]) for i, c in enumerate(chances)]
        return Offer(place, guesses[: place.n])

    def draft(self, offers):
        return [list(offer.guesses) for offer in offers]


def test_a_row_costs_what_it_adds_to_the_step_of_all_sequences():
    schedule, guess = Schedule(), [0.5]
    for rows, seconds in ((1, 1.0), (2, 1.3), (4, 2.0), (5, 3.0)):
        schedule.target.add(rows, seconds)
    assert schedule.best_length(guess, rows=1)[0] == 1  # .3 of a step at one token a step
    schedule.together = 4
    assert schedule.rate() == 2.0
    assert schedule.best_length(guess, rows=4)[0] == 0  # 1 s more, worth two tokens


# ---- drafters that auto has never heard of


class Oracle:
    """Knows the text; with `costs` it makes passes that take a second on `clock`."""

    def __init__(self, text, costs=None, clock=None):
        self.name, self.text, self.costs, self.clock = "oracle", text, costs, clock
        self.assumed = {-1: 0.9, 0: 0.9}
        self.passes, self.seconds, self.loading, self.asked, self.ended = 0, 0.0, 0.0, 0, 0

    def begin(self, rule):
        return rule.options

    def offer(self, place, known):
        self.asked += 1
        if self.costs is None:
            return Offer(place, self.guesses(place)[: place.n])
        return Offer(place, chances=(known.right(self),) * 4, rows=1, tokens=4.0)

    def guesses(self, place):
        end = len(place.ids)
        return [Guess(token, self.name) for token in self.text[end : end + 4]]

    def draft(self, offers):
        if self.costs is not None:
            self.passes, self.seconds = self.passes + 1, self.seconds + 0.1
            self.costs.add(len(offers), 0.1)
            self.clock.now += 0.1
        return [self.guesses(offer.place)[: offer.place.n] for offer in offers]

    def end(self, state):
        self.ended += 1

    def close(self): ...


@pytest.mark.parametrize("paid", [False, True])
def test_a_third_kind_of_drafter_is_asked_like_any_other(paid):
    class Slow(FakeBackend):
        def forward_many(self, segments):
            clock.now += 1.0
            return super().forward_many(segments)

    clock, job = Clock(), ([3, 4], SamplingOptions(), 50, ())
    right = alone(FakeBackend(), job)
    oracle = Oracle([3, 4, *right], Costs() if paid else None, clock)
    if oracle.costs is not None:
        oracle.costs.add(1, 0.1)
    auto = Auto(Schedule(), [MaxGram(), oracle])
    speculator = Speculator(auto, [oracle], clock)
    one = writer(*job)
    assert list(Scheduler(Slow(), speculator=speculator).write(one)) == right
    (source,) = one.timings.drafting.sources
    assert source.accepted > 30
    assert (source.passes > 5) == paid
    assert one.timings.drafting.target_passes < 20
    assert oracle.ended == 1


# ---- many prompts, one LLM


@pytest.mark.parametrize("draft", ["maxgram", "auto:nested", "nested", "cascade:nested,maxgram:3,2/4"])
def test_an_llm_drafts_for_all_answers_of_a_batch(tmp_path, draft):
    folder = exported(tmp_path, "nested")
    texts = ["once upon a time", "the king said", "once upon a hill", "far away there was"]
    options = {"n": 24, "temp": 1.2, "top_k": 0, "min_p": 0.0}
    with LLM(folder, threads=1, ctx=96) as llm:
        plain = [llm.generate(text, seed=i, **options).tokens for i, text in enumerate(texts)]
    with LLM(folder, threads=1, ctx=96, batch=3, draft=draft) as llm:
        prompts = [llm.text_prompt(text, seed=i, **options) for i, text in enumerate(texts)]
        answers = dict(llm.answer_many(prompts))
        assert all(leaf._backend.slots == 3 for leaf in llm.speculator.leaves if leaf.costs is not None)
    assert [answers[i].tokens for i in range(4)] == plain
    assert all(answer.timings.drafting is not None for answer in answers.values())


def test_seconds_of_drafted_answers_add_up_and_passes_are_shared():
    clock = itertools.count().__next__
    model = ModelDrafter("m", FakeBackend(slots=2), 300, clock)
    scheduler = Scheduler(
        FakeBackend(slots=2), speculator=assemble([model], DraftSpec(("m",), ((2,),), 1.0), clock)
    )
    answers = [scheduler.add(writer([5, 6 + i], n=9)) for i in range(2)]
    while scheduler.count:
        scheduler.step()
    sources = [answer.timings.drafting.sources[0] for answer in answers]
    assert sum(source.seconds for source in sources) == pytest.approx(model.seconds)
    assert max(source.passes for source in sources) <= model.passes < sum(source.passes for source in sources)


def test_no_segment_is_empty():
    """The backend asks for at least one row of each sequence."""

    class Strict(FakeBackend):
        def forward_many(self, segments: list[Segment]):
            assert all(len(segment.ids) > 0 for segment in segments)
            return super().forward_many(segments)

    speculator = assemble([MaxGram()], DraftSpec(("maxgram",)))
    scheduler = Scheduler(Strict(slots=2), speculator=speculator)
    assert [len(list(scheduler.write(writer([3, 3], n=n)))) for n in (1, 2, 3)] == [1, 2, 3]
