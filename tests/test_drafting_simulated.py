"""runtime.drafting.auto in whole answers, on a clock of our own: what pays is drafted, the rest is left."""

from __future__ import annotations

import numpy as np
import pytest

from flatlm.runtime.drafting import Offer, Place
from flatlm.runtime.drafting.costs import Costs
from flatlm.runtime.drafting.lengths import KEPT, Lengths
from flatlm.runtime.drafting.maxgram import MaxGram
from flatlm.runtime.drafting.model import ModelDrafter
from flatlm.runtime.drafting.readings import HORIZON, Readings
from flatlm.runtime.drafting.schedule import Schedule
from flatlm.runtime.drafting.spec import DraftSpec, assemble
from flatlm.runtime.drafting.verify import invariant
from flatlm.runtime.generation.answer import Answer, Prompt
from flatlm.runtime.generation.sampler import make_sampler
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.options import SamplingOptions
from tests.tiny_text import FakeBackend

GREEDY = invariant(make_sampler(SamplingOptions()))


class Clock:
    """Seconds that pass only where something says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Timed(FakeBackend):
    """Writes `text`, whatever it reads; a pass over m rows takes base + slope · (m - 1) seconds."""

    def __init__(self, clock, text, base=1.0, slope=0.1, vocab=64):
        super().__init__(vocab=vocab, context=len(text))
        self.clock, self.text, self.base, self.slope = clock, text, base, slope

    def forward(self, ids, logits=1):
        self.clock.now += self.base + self.slope * (len(ids) - 1)
        return super().forward(ids, logits)

    def row(self):
        row = np.zeros(self.vocab)
        row[self.text[len(self.ids) % len(self.text)]] = 5.0
        return row


PROMPT = 40


def seconds_of(text, drafters, clock, base=1.0, slope=0.1, schedule=None):
    """(plain, drafted) seconds for the tokens of `text` after the first PROMPT."""
    times = []
    names = tuple("maxgram" if isinstance(drafter, MaxGram) else "m" for drafter in drafters)
    drafted = assemble(drafters, DraftSpec(names), clock, schedule)
    for speculator in (None, drafted):
        scheduler = Scheduler(Timed(clock, text, base, slope), speculator=speculator)
        started = clock.now
        ids = list(scheduler.write(Answer(Prompt(text[:PROMPT], SamplingOptions(n=-1)))))
        assert ids[:-1] == text[PROMPT:]
        times.append(clock.now - started)
    return times


def a_text(kind, length=700):
    rng = np.random.default_rng(1)
    if kind == "random":
        return rng.integers(0, 60, length).tolist()
    return (rng.integers(0, 60, 30).tolist() * length)[:length]  # the same thirty tokens again and again


@pytest.mark.parametrize("slope", [0.0, 0.1, 0.5, 1.0])
def test_a_text_that_repeats_itself_comes_faster_and_a_random_one_not_slower(slope):
    clock = Clock()
    plain, drafted = seconds_of(a_text("repeating"), [MaxGram()], clock, slope=slope)
    assert plain / drafted > {0.0: 6, 0.1: 4, 0.5: 1.6, 1.0: 0.97}[slope]
    plain, drafted = seconds_of(a_text("random"), [MaxGram()], clock, slope=slope)
    assert plain / drafted > 0.97


def altered(text, share, seed=2):
    """`text` as a model would guess it that is wrong at `share` of the places."""
    rng = np.random.default_rng(seed)
    return [(t + 1) % 60 if rng.random() < share else t for t in text]


@pytest.mark.parametrize(
    ("wrong", "cost", "least"),
    [
        (0.05, 0.1, 2.5),  # cheap and right
        (0.3, 0.1, 1.3),
        (0.1, 0.5, 1.1),
        (0.95, 0.1, 0.97),  # cheap and wrong
        (0.05, 1.5, 0.97),  # right, but dearer than the target
        (1.0, 1.0, 0.97),
    ],
)
def test_a_model_drafts_as_far_as_it_pays(wrong, cost, least):
    clock, text = Clock(), a_text("random")
    model = ModelDrafter("m", Timed(clock, altered(text, wrong), cost, cost / 10), 64, clock)
    plain, drafted = seconds_of(text, [MaxGram(), model], clock)
    assert plain / drafted > least


def test_a_cascade_is_at_least_nearly_as_fast_as_its_best_part():
    def drafters(clock, text):
        guessed = altered(text, 0.2)
        return MaxGram(), ModelDrafter("m", Timed(clock, guessed, 0.2, 0.02), 64, clock)

    text = a_text("repeating", 200) + a_text("random", 300) + a_text("repeating", 200)
    rates = []
    for chosen in (slice(0, 1), slice(1, 2), slice(0, 2)):
        clock = Clock()
        plain, drafted = seconds_of(text, drafters(clock, text)[chosen], clock)
        rates.append(plain / drafted)
    assert rates[2] > 0.95 * max(rates[:2]) > 1


def test_a_text_that_turns_favourable_is_noticed():
    clock = Clock()
    text = a_text("random", 600) + a_text("repeating", 500)
    turn = Timed(clock, text)
    plain, drafted = seconds_of(text, [MaxGram()], clock)
    assert plain - drafted > 0.5 * 500 * turn.base


def test_a_proposal_of_a_drafting_model_that_must_read_a_long_prompt_is_an_investment():
    clock, text = Clock(), a_text("random", 400)
    slow = Timed(clock, text, 0.1, 0.1)  # reading the prompt takes four plain steps
    plain, drafted = seconds_of(text, [ModelDrafter("m", slow, 64, clock)], clock)
    assert plain / drafted > 2


@pytest.mark.parametrize(("serves", "read"), [(2.0, False), (HORIZON, True)])
def test_a_prompt_is_read_where_that_serves_many_steps(serves, read):
    clock, schedule, text = Clock(), Schedule(), a_text("random", 240)
    schedule.readings.recall({"m": serves})
    schedule.lengths.recall([len(text) - PROMPT] * 7)
    slow = Timed(clock, text, 0.4, 0.2)  # reading the prompt takes 8 plain steps
    model = ModelDrafter("m", slow, 64, clock, size=0.4)
    seconds_of(text, [model], clock, schedule=schedule)
    assert (model.passes > 0) == read
    assert schedule.readings.serves("m") == serves
    steps = 2 * schedule.readings.memory()["m"] - serves
    assert not read or 20 < steps < model.passes


def answered(readings, steps, catching_up=0):
    """An answer in which "m" read the prompt and then drafted in `steps` steps; `None`: it did neither."""
    readings.begin()
    for _ in range(1 + catching_up if steps is not None else 0):
        readings.read("m")
        for _ in range(steps // (1 + catching_up)):
            readings.served("m")
            readings.served("another")


def test_how_many_steps_a_reading_serves_is_averaged():
    readings = Readings()
    for steps, known in ((4, HORIZON), (10, (HORIZON + 4) / 2), (0, (HORIZON + 4) / 4 + 10 / 2)):
        answered(readings, steps)
        assert readings.serves("m") == known
    for _ in range(10):
        answered(readings, 0)
    assert readings.serves("m") == 1.0
    assert readings.serves("another") == HORIZON


def test_what_a_model_catches_up_with_in_an_answer_is_no_reading_of_its_own():
    readings = Readings()
    answered(readings, 60, catching_up=3)
    assert readings.memory() == {"m": (HORIZON + 60) / 2}


def test_a_reading_of_an_earlier_answer_may_still_serve():
    readings = Readings()
    answered(readings, 30)
    for _ in range(2):
        readings.begin()
        for _ in range(30):
            readings.served("m")
    assert readings.memory() == {"m": (HORIZON + 90) / 2}


def test_where_a_model_is_not_used_what_its_readings_served_is_forgotten():
    readings = Readings()
    answered(readings, 4)
    for _ in range(40):
        answered(readings, None)
    assert 60 < readings.serves("m") < HORIZON


def test_processes_of_one_answer_learn_what_a_long_one_does():
    readings = Readings()
    for _ in range(10):
        memory, readings = readings.memory(), Readings()
        readings.recall(memory)
        answered(readings, 4)
    assert 4 < readings.serves("m") < 5


def test_a_model_that_never_ran_is_not_taken_for_free():
    text = a_text("random", 200)
    for size, runs in ((0.0, True), (0.9, False)):
        clock = Clock()
        model = ModelDrafter("m", Timed(clock, text, 0.9, 0.09), 64, clock, size)
        seconds_of(text, [MaxGram(), model], clock)
        assert (model.passes > 0) == runs


def test_a_model_whose_weights_had_to_be_loaded_first_is_used_after_all():
    class Cold(Timed):
        def forward(self, ids, logits=1):
            if not model.passes:
                clock.now += 400.0
            return super().forward(ids, logits)

    text, clock, schedule = a_text("random", 400), Clock(), Schedule()
    model = ModelDrafter("m", Cold(clock, altered(text, 0.15), 0.4, 0.04), 64, clock, size=0.3)
    for least in (0.4, 1.2):
        plain, drafted = seconds_of(text, [model], clock, schedule=schedule)
        assert plain / drafted > least
    assert model.costs(PROMPT) < 10


def test_a_first_pass_counts_as_far_as_it_was_to_be_expected():
    clock = Clock()
    model = ModelDrafter("m", Timed(clock, a_text("random", 200), 100.0, 0.0), 64, clock)
    model.costs.assumed = 1.0
    model.draft([Offer(Place(model.begin(GREEDY), [1], 1))])
    assert (model.costs(1), model.loading, model.seconds) == (2.5, 97.5, 100.0)


def test_every_answer_begins_with_what_readings_served():
    schedule, begun = Schedule(), []
    schedule.readings.begin = lambda: begun.append(1)
    for _ in range(2):
        seconds_of(a_text("random", 60), [MaxGram()], Clock(), schedule=schedule)
    assert len(begun) == 2


def test_a_model_that_was_read_in_vain_does_not_keep_max_gram_from_drafting():
    text, clock = a_text("random", 100) + a_text("repeating", 300), Clock()
    model = ModelDrafter("m", Timed(clock, altered(text, 1.0), 0.3, 0.2), 64, clock)
    plain, drafted = seconds_of(text, [MaxGram(), model], clock)
    assert model.passes > 0
    assert plain / drafted > 2.5


def in_the_next_process(schedule):
    target = Costs()
    target.recall(schedule.target.memory())
    result = Schedule(target)
    result.recall(schedule.memory())
    return result


@pytest.mark.parametrize("then", [0.4, 3.0])
def test_what_an_earlier_process_measured_on_a_faster_or_slower_machine_does_no_harm(then):
    text, clock = a_text("random", 200), Clock()
    before, schedule = None, Schedule()
    for factor in (then, 1.0, 1.0):
        model = ModelDrafter("m", Timed(clock, altered(text, 0.1), 0.1 * factor, 0.01 * factor), 64, clock)
        if before:
            model.costs.recall(before.costs.memory())
            schedule = in_the_next_process(schedule)
        plain, drafted = seconds_of(text, [MaxGram(), model], clock, factor, 0.1 * factor, schedule)
        before = model
        assert plain / drafted > 1.8


def test_another_text_in_the_next_process_is_drafted_as_well_as_in_a_first_one():
    clock, ratios = Clock(), []
    for before in (None, a_text("repeating", 300)):
        text = a_text("random", 200)
        schedule = Schedule()
        if before:
            seconds_of(before, [MaxGram()], clock, schedule=schedule)
            schedule = in_the_next_process(schedule)
        model = ModelDrafter("m", Timed(clock, altered(text, 0.1), 0.2, 0.02), 64, clock, 0.2)
        plain, drafted = seconds_of(text, [MaxGram(), model], clock, schedule=schedule)
        ratios.append(plain / drafted)
    assert ratios[1] > 0.9 * ratios[0] > 1.3


# ---- short answers and long ones


def ratios_of(lengths, wrong, base, slope, prompt=120):
    """Plain / drafted seconds of writing answers of these lengths, each in a process of its own."""
    clock, schedule, kept, found = Clock(), Schedule(), None, []
    for number, length in enumerate(lengths):
        text = np.random.default_rng(100 + number).integers(0, 60, prompt + length).tolist()
        model = ModelDrafter("m", Timed(clock, altered(text, wrong, number), base, slope), 64, clock, base)
        if number:
            schedule = in_the_next_process(schedule)
            if kept:
                model.costs.recall(kept)
        times = []
        for speculator in (None, assemble([MaxGram(), model], DraftSpec(("maxgram", "m")), clock, schedule)):
            scheduler = Scheduler(Timed(clock, text, 1.0, 0.05), speculator=speculator)
            ids = scheduler.write(Answer(Prompt(text[:prompt], SamplingOptions(n=-1))))
            next(ids)  # has read the prompt
            started = clock.now
            assert len(list(ids)) == length
            times.append(clock.now - started)
        found.append(times[0] / times[1])
        kept = model.costs.memory() or kept
    return found


# A reading of the prompt takes 10, 12 and 2.5 plain steps.
@pytest.mark.parametrize(("wrong", "base", "slope"), [(0.15, 0.3, 0.08), (0.1, 0.5, 0.1), (0.2, 0.1, 0.02)])
@pytest.mark.parametrize("lengths", [range(10, 61, 3), [12, 150, 25, 300, 40, 12, 60, 150, 10, 40]])
def test_short_answers_lose_little_by_a_model_that_would_have_to_read_the_prompt(lengths, wrong, base, slope):
    ratios = ratios_of(np.random.default_rng(0).permutation(lengths), wrong, base, slope)
    assert min(ratios) > 0.85
    assert np.median(ratios) > 0.95


def test_where_answers_are_long_the_prompt_is_read_at_once():
    ratios = ratios_of([250, 220, 270, 200, 240, 260, 210, 230, 270, 250, 220], 0.15, 0.3, 0.08)
    assert min(ratios[:7]) > 0.9  # nobody knew
    assert np.median(ratios[7:]) > 1.35


def test_an_answer_that_goes_on_is_worth_a_reading_though_nobody_knew():
    (ratio,) = ratios_of([1500], 0.15, 0.3, 0.03)
    assert ratio > 1.25


def test_seven_of_eight_answers_are_as_long_as_is_said():
    lengths = Lengths()
    for tokens in range(1, 21):
        lengths.add(10 * tokens)
    assert [lengths.rest(written) for written in (0, 95, 175, 185, 500)] == [20, 5, 0, 0, 0]
    for _ in range(KEPT):
        lengths.add(7)
    assert (lengths.rest(0), lengths.rest(7)) == (7, 0)
