"""runtime.drafting.schedule: what passes cost, how likely guesses are right, and which of them pay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatlm.runtime.drafting import Ask, Guess
from flatlm.runtime.drafting.auto import Auto
from flatlm.runtime.drafting.costs import STALE, SWEEP, Costs
from flatlm.runtime.drafting.maxgram import MaxGram
from flatlm.runtime.drafting.schedule import FADE, HOPELESS, START, Schedule
from flatlm.runtime.drafting.verify import invariant
from flatlm.runtime.generation.sampler import make_sampler
from flatlm.runtime.options import SamplingOptions

GREEDY = invariant(make_sampler(SamplingOptions()))

# ---- costs


def test_costs_are_straight_lines_between_what_was_measured():
    costs = Costs()
    assert not costs and costs(3) == 0
    costs.add(1, 10.0)
    assert [costs(1), costs(2), costs(11)] == [10.0, 11.0, 20.0]  # a tenth of a row's cost for each more
    costs.add(5, 18.0)
    assert [costs(1), costs(2), costs(3.5), costs(5)] == [10.0, 12.0, 15.0, 18.0]


def test_what_is_assumed_counts_until_the_first_pass():
    costs = Costs()
    costs.assumed = 10.0
    assert not costs and [costs(1), costs(11)] == [10.0, 20.0]
    costs.add(2, 100.0)  # no pause of the machine: nothing was known of it
    assert costs and costs(2) == 100.0


def test_a_pause_of_the_machine_is_no_cost_and_a_lasting_change_is():
    costs = Costs()
    costs.add(1, 10.0)
    costs.add(1, 1000.0)
    assert costs(1) == 10 + 0.25 * 15
    for _ in range(30):
        costs.add(1, 12.0)
    assert costs(1) == pytest.approx(12, rel=0.01)


def test_a_cost_that_was_not_measured_for_long_is_guessed_again():
    costs = Costs()
    costs.add(1, 10.0)
    costs.add(2, 25.0)
    for _ in range(STALE + SWEEP):
        costs.add(1, 10.0)
    assert costs(2) == 11.0


def test_rows_come_and_go_at_once():
    costs = Costs()
    costs.add(1, 10.0)
    costs.add(9, 25.0)
    while costs._passes < STALE + SWEEP - 1:
        costs.add(1, 10.0)
    costs.add(30, 39.0)  # while 9 rows are forgotten
    assert costs(9) == pytest.approx(18.0)


# ---- chances and gains


def schedule_with(costs):
    schedule = Schedule()
    for rows, seconds in costs.items():
        schedule.target.add(rows, seconds)
    return schedule


def test_chances_are_counted_and_fade_back():
    schedule = schedule_with({1: 1.0})
    assert schedule.odds("m", 0, assumed=0.6) == 0.6
    for _ in range(100):
        schedule.note("m", 0, right=False)
    assert schedule.odds("m", 0, assumed=0.6) < 0.05
    assert schedule.odds("m", 1, assumed=0.6) == 0.6
    for _ in range(12 * FADE):
        schedule.spend(1, 1.0, 1.0, 1, 0.0)
    assert schedule.odds("m", 0, assumed=0.6) > 0.55


def test_a_guess_is_learned_from_as_far_as_the_answer_agrees_and_one_further():
    schedule = schedule_with({1: 1.0})
    guesses = [Guess(token, "m", trust=i) for i, token in enumerate([4, 5, 6, 7])]
    schedule.learn(guesses, [4, 5, 9])
    odds = [schedule.odds("m", i, assumed=0.5) for i in range(4)]
    assert odds[0] == odds[1] > 0.5 > odds[2]
    assert odds[3] == 0.5


def test_the_length_that_gains_most_is_verified():
    schedule = schedule_with({1: 1.0, 2: 1.1, 4: 1.3, 5: 4.0})  # a step after four rows, as tiles have
    assert schedule.best_length([0.8] * 8)[0] == 3
    assert schedule.best_length([0.9, 0.05, 0.9])[0] == 1
    assert schedule.best_length([0.05] * 8) == (0, 0.0)
    assert schedule.best_length([0.9] * 8, certain=0.1)[0] == 0


@given(
    st.lists(st.floats(0.3, 0.7), max_size=12),
    st.lists(st.floats(0.0, 0.3), min_size=14, max_size=14),
    st.floats(0.3, 1.0),
    st.floats(0.0, 0.5),
)
def test_no_other_length_gains_more(odds, steps, certain, each):
    schedule = Schedule()
    costs = [1.0, *(1.0 + np.cumsum(steps))]
    for rows, seconds in enumerate(costs, start=1):
        schedule.target.add(rows, seconds)
    reached = certain * np.cumprod(odds)
    added = [count * each + costs[1 + count] - costs[1] for count in range(1, len(odds) + 1)]
    gains = [0.0, *(np.cumsum(reached) - np.array(added))]
    chosen, gain = schedule.best_length(odds, certain, 2, each)
    assert gain == pytest.approx(max(gains), abs=3 * HOPELESS)  # no more than that is hopeless
    assert gain == pytest.approx(gains[chosen])


def test_of_what_max_gram_proposes_as_much_is_drafted_as_pays():
    schedule, ids = Schedule(), [*range(10), *range(10), 0]
    for rows in range(1, 18):
        schedule.target.add(rows, 1 + 0.05 * (rows - 1) ** 2)
    auto, run = Auto(schedule, [MaxGram()]), MaxGram().propose(MaxGram().begin(), ids, 16)
    (found,) = auto.propose([Ask(auto.begin(GREEDY), ids, 16)])
    draft = found.guesses
    assert draft == run[: schedule.best_length(map(auto._odds, run))[0]]
    assert 2 < len(draft) < len(run)


def test_time_is_worth_more_where_tokens_come_faster():
    schedule = schedule_with({1: 1.0, 4: 1.3})
    slow = schedule.rate() * (schedule.target(4) - schedule.target(1))
    assert schedule.rate() == 1.0
    for _ in range(50):
        schedule.spend(4, 1.3, 1.3, 4, 0.0)
    assert schedule.rate() == pytest.approx(4 / 1.3, rel=0.3)
    assert schedule.rate() * (schedule.target(4) - schedule.target(1)) > 2 * slow


def test_losses_use_up_the_credit_and_time_restores_it():
    schedule = schedule_with({1: 1.0, 4: 2.0})
    assert schedule.may_draft()
    for _ in range(int(START) + 2):
        schedule.spend(4, 2.0, 2.0, 1, 0.0)
    assert not schedule.may_draft()
    for _ in range(400):
        schedule.spend(1, 1.0, 1.0, 1, 0.0)
    assert schedule.may_draft()


def test_a_process_that_was_stopped_while_a_drafter_wrote_drafts_again():
    schedule = schedule_with({1: 1.0, 2: 1.1})
    schedule.spend(2, 1.1, 3600.0, 2, 0.0)
    assert not schedule.may_draft()
    for _ in range(15):
        schedule.spend(1, 1.0, 1.0, 1, 0.0)
        schedule.miss(0.9, right=True)
    assert schedule.may_draft()


def test_before_the_first_plain_pass_nothing_is_drafted():
    assert not Schedule().may_draft()


def test_the_cost_of_a_plain_pass_is_measured_again_now_and_then():
    schedule = schedule_with({1: 1.0, 2: 1.0})
    for _ in range(200):
        schedule.spend(2, 1.0, 1.0, 2, 0.0)
    assert not schedule.may_draft()
    schedule.spend(1, 1.0, 1.0, 1, 0.0)
    assert schedule.may_draft()
