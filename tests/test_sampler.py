"""flatlm.runtime.generation.sampler: the distribution after each filter, ties, seeds."""

from __future__ import annotations

import time

import numpy as np
import pytest

from flatlm.runtime.errors import BackendError
from flatlm.runtime.generation.sampler import (
    distribution,
    draw,
    greedy,
    likeliest,
    make_sampler,
    next_law,
    noise_key,
    penalize,
    race,
    recent,
    uniforms,
)
from flatlm.runtime.options import SamplingOptions

OPEN = {"temp": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def logits_of(probabilities):
    return np.log(np.asarray(probabilities)).astype(np.float32)


def kept(probabilities, **options):
    return distribution(logits_of(probabilities), SamplingOptions(**{**OPEN, **options}))[0].tolist()


def test_greedy_takes_the_lowest_of_equal_ids():
    assert greedy(np.array([0, 3, 1, 3], np.float32)) == 1


def test_without_filters_the_distribution_is_the_softmax():
    ids, shares = distribution(logits_of([0.1, 0.6, 0.3]), SamplingOptions(**OPEN))
    assert ids.tolist() == [0, 1, 2]
    np.testing.assert_allclose(shares, [0.1, 0.6, 0.3], rtol=1e-6)


def test_temperature_sharpens():
    _, shares = distribution(logits_of([0.2, 0.8]), SamplingOptions(**{**OPEN, "temp": 0.5}))
    np.testing.assert_allclose(shares, [0.04 / 0.68, 0.64 / 0.68], rtol=1e-6)


def test_top_k_keeps_k():
    assert kept([0.1, 0.4, 0.2, 0.3], top_k=2) == [1, 3]


def test_top_k_keeps_ties_of_the_last_place():
    assert kept([0.1, 0.5, 0.2, 0.2], top_k=2) == [1, 2, 3]


def test_top_k_of_a_large_vocabulary_is_what_sorting_gives():
    values = np.random.default_rng(0).integers(0, 5000, 10_001).astype(np.float32)  # with ties
    for k in (1, 40, 150, 9000):
        assert likeliest(values, k).tolist() == np.flatnonzero(values >= np.sort(values)[-k]).tolist()


def test_top_k_beyond_the_vocabulary_keeps_all():
    assert kept([0.25, 0.5, 0.25], top_k=100) == [0, 1, 2]


@pytest.mark.parametrize(
    ("top_p", "expected"), [(0.0, [1]), (0.39, [1]), (0.6, [1, 3]), (0.95, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_that_hold_the_share(top_p, expected):
    assert kept([0.1, 0.4, 0.2, 0.3], top_p=top_p) == expected


def test_top_p_counts_shares_among_the_top_k():
    assert kept([0.1, 0.4, 0.2, 0.3], top_k=2, top_p=0.5) == [1]


@pytest.mark.parametrize(("min_p", "expected"), [(0.3, [1, 2, 3]), (0.6, [1, 3]), (1.0, [1])])
def test_min_p_is_relative_to_the_likeliest(min_p, expected):
    assert kept([0.1, 0.45, 0.15, 0.3], min_p=min_p) == expected


def test_min_p_drops_what_the_formula_drops_whether_one_id_is_left_or_more():
    rng, left = np.random.default_rng(0), set[int]()
    for _ in range(300):
        logits = (rng.normal(size=500) * rng.uniform(0.1, 8)).astype(np.float32)
        temp, min_p = rng.uniform(0.1, 2), rng.uniform(0.01, 1)
        ids, shares = distribution(logits, SamplingOptions(**{**OPEN, "temp": temp, "min_p": min_p}))
        weights = np.exp((logits.astype(np.float64) - logits.max()) / temp)
        assert ids.tolist() == np.flatnonzero(weights >= min_p).tolist()
        np.testing.assert_allclose(shares, weights[ids] / weights[ids].sum())
        left.add(min(len(ids), 2))
    assert left == {1, 2}


def test_ids_as_likely_as_the_likeliest_are_kept_by_any_min_p():
    assert kept([0.4, 0.4, 0.2], min_p=1.0) == [0, 1]


def test_top_p_looks_beyond_its_first_candidates():
    ids, _ = distribution(np.zeros(5000, np.float32), SamplingOptions(**{**OPEN, "top_p": 0.5}))
    assert ids.tolist() == list(range(2500))


@pytest.mark.parametrize("seed", range(8))
def test_filters_keep_what_those_of_transformers_keep(seed):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(3000) * 3).astype(np.float32)
    options = SamplingOptions(
        temp=rng.uniform(0.3, 2),
        top_k=int(rng.choice([0, 20, 400])),
        top_p=rng.uniform(0.3, 1),
        min_p=rng.uniform(0, 0.1),
    )
    steps = [
        transformers.TemperatureLogitsWarper(options.temp),
        *([transformers.TopKLogitsWarper(options.top_k)] if options.top_k else []),
        transformers.TopPLogitsWarper(options.top_p),
        transformers.MinPLogitsWarper(options.min_p),
    ]
    expected = torch.tensor(logits)[None]
    for step in steps:
        expected = step(None, expected)
    expected = torch.softmax(expected[0].double(), -1).numpy()
    ids, shares = distribution(logits, options)
    actual = np.zeros(3000)
    actual[ids] = shares
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-9)


def test_a_penalty_divides_positive_and_multiplies_negative_logits_once_each():
    logits = np.array([2.0, -2.0, 2.0], np.float32)
    assert penalize(logits, [0, 1, 0, 1], 2.0).tolist() == [1.0, -4.0, 2.0]
    assert logits.tolist() == [2.0, -2.0, 2.0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("settings", [{"temp": 0.0}, {**OPEN, "temp": 1.3}, {"temp": 0.9, "top_p": 0.8}])
def test_of_some_ids_one_is_chosen_as_if_no_other_could_come(settings, seed):
    rng = np.random.default_rng(seed)
    options = SamplingOptions(**{**settings, "seed": seed, "repeat_penalty": 1.3})
    ids = np.sort(rng.choice(500, 90, replace=False))
    logits = rng.standard_normal(90).astype(np.float32) * 2
    everywhere = np.full(500, -np.inf, np.float32)
    everywhere[ids] = logits
    for length in range(1, 40):
        history = rng.integers(0, 500, length).tolist()
        some, whole = next_law(logits, history, options, ids), next_law(everywhere, history, options)
        likely = whole[1] > 0
        assert np.array_equal(some[0], whole[0][likely])
        assert some[1] == pytest.approx(whole[1][likely])
        sampler = make_sampler(options)
        assert sampler(logits, history, ids) == sampler(everywhere, history)


@pytest.mark.parametrize(("last", "expected"), [(2, [3, 4]), (0, []), (-1, [1, 2, 3, 4]), (9, [1, 2, 3, 4])])
def test_recent_tokens_are_the_last_ones(last, expected):
    assert list(recent([1, 2, 3, 4], last)) == expected


def test_the_penalty_counts_even_when_greedy():
    logits = np.array([1.0, 1.2], np.float32)
    assert make_sampler(SamplingOptions(repeat_penalty=2.0))(logits, [1]) == 0
    assert make_sampler(SamplingOptions(repeat_penalty=2.0, repeat_last_n=1))(logits, [1, 0]) == 1


def test_a_seed_repeats_and_another_differs():
    logits = np.zeros(1000, np.float32)

    def draws(seed):
        sampler = make_sampler(SamplingOptions(**{**OPEN, "seed": seed}))
        return [sampler(logits, [0] * position) for position in range(8)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(-1) != draws(-1)


def test_a_draw_depends_on_the_position_and_not_on_the_draws_before():
    logits = np.zeros(1000, np.float32)
    sampler = make_sampler(SamplingOptions(**OPEN, seed=1))
    first = [sampler(logits, [0] * position) for position in range(8)]
    assert [sampler(logits, [0] * position) for position in reversed(range(8))] == first[::-1]
    assert len(set(first)) > 4


@pytest.mark.parametrize("over", ["positions", "seeds"])
def test_draws_follow_the_distribution(over):
    law = np.array([0, 1, 2]), np.array([0.1, 0.6, 0.3])
    keys = [noise_key(3, i) if over == "positions" else noise_key(i, 3) for i in range(4000)]
    counts = np.bincount([race(law, key) for key in keys], minlength=3)
    np.testing.assert_allclose(counts / 4000, law[1], atol=0.025)  # three standard deviations


def test_the_noise_of_neighbouring_positions_seeds_and_ids_is_uncorrelated():
    noise = np.array([[uniforms(np.arange(64), noise_key(s, p)) for p in range(16)] for s in range(16)])
    for axis in range(3):
        a, b = np.take(noise, range(15), axis), np.take(noise, range(1, 16), axis)
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03  # 3.7 deviations at 16 × 15 × 64 pairs


def test_laws_with_one_key_give_the_same_id_as_often_as_they_agree():
    ids, p, q = np.arange(3), np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.2, 0.3])
    distance = np.abs(p - q).sum() / 2
    same = np.mean([race((ids, p), noise_key(0, i)) == race((ids, q), noise_key(0, i)) for i in range(4000)])
    assert same >= (1 - distance) / (1 + distance)
    assert same > (p * q).sum() + 0.2  # what independent draws give


def test_an_id_without_a_share_is_never_drawn():
    law = np.array([4, 7]), np.array([0.0, 1.0])
    assert {race(law, noise_key(0, i)) for i in range(100)} == {7}


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 7), (0.24, 7), (0.25, 5), (0.9999999999999999, 5)])
def test_a_draw_lands_where_the_cumulated_shares_say(uniform, expected):
    assert draw((np.array([7, 5]), np.array([0.25, 0.75])), uniform) == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temp", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(bad, temp):
    with pytest.raises(BackendError, match="logits"):
        make_sampler(SamplingOptions(temp=temp))(np.array([0, bad, 1], np.float32), ())


def test_sampling_a_large_vocabulary_takes_milliseconds():
    logits = (np.random.default_rng(0).standard_normal(151_936) * 2).astype(np.float32)
    sampler = make_sampler(SamplingOptions(temp=0.8, seed=1))
    sampler(logits, ())
    started = time.perf_counter()
    for _ in range(10):
        sampler(logits, ())
    assert (time.perf_counter() - started) / 10 < 0.1  # measured: 1 to 3 ms; the bound is for busy machines
