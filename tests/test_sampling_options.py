"""Biases, penalties of presence and frequency, log probabilities, several answers: by all ways to write."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.runtime.drafting.speculator import Speculator
from flatlm.runtime.errors import UsageError
from flatlm.runtime.generation.answer import Answer, Prompt
from flatlm.runtime.generation.logprobs import logprob_of
from flatlm.runtime.generation.sampler import adjusted, make_sampler, next_law
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.llm import LLM
from flatlm.runtime.logit_bias import BANNED, bias_of_flag, biases_of
from flatlm.runtime.options import SamplingOptions
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.test_drafting import Guesser, Periodic
from tests.tiny_text import CHATML, FakeBackend, byte_level, write_folder


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(write_folder(tmp_path, byte_level()))


# ---- what users write


@pytest.mark.parametrize(
    ("flag", "bias"),
    [
        ("15043+1", (15043, 1.0)),
        ("15043-2.5", (15043, -2.5)),
        ("15043=false", (15043, BANNED)),
        ("15043=-inf", (15043, BANNED)),
        (" Hello=-5", (" Hello", -5.0)),
        ("a=b=2", ("a=b", 2.0)),
    ],
)
def test_a_bias_is_written_as_llama_cpp_has_it_or_with_a_text(flag, bias):
    assert bias_of_flag(flag) == bias


def test_biases_are_openais_object_or_llama_cpps_pairs():
    assert biases_of({"5": -100, 6: 1, "no": 2}) == ((5, -100.0), (6, 1.0), ("no", 2.0))
    assert biases_of([[5, False], ["5", 0.5]]) == ((5, BANNED), ("5", 0.5))
    assert SamplingOptions(logit_bias={5: 1}).logit_bias == ((5, 1.0),)


@pytest.mark.parametrize(
    "given", [3, [5], [[5, "x"]], {"5": None}, [[-1, 1]], [[True, 1]], {"5": float("nan")}]
)
def test_a_bias_that_is_none_is_an_error_that_names_the_option(given):
    with pytest.raises(UsageError, match="--logit-bias") as error:
        SamplingOptions(logit_bias=given)
    assert error.value.param == "logit_bias"


def test_more_biases_than_a_thousand_are_refused():
    with pytest.raises(UsageError, match="1001 entries"):
        biases_of(dict.fromkeys(range(1001), 1))


# ---- what becomes of logits


def test_penalties_are_taken_off_as_llama_cpp_takes_them():
    logits, history = np.array([2, -1, 3, 4], np.float32), [0, 1, 1, 3, 1]
    options = SamplingOptions(repeat_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    # of id: value by the repetition penalty, less count · frequency + presence
    expected = [2 / 2 - 0.75, -1 * 2 - 3 * 0.25 - 0.5, 3, 4 / 2 - 0.75]
    assert adjusted(logits, history, options).tolist() == expected
    last_two = replace(options, repeat_last_n=2)
    assert adjusted(logits, history, last_two).tolist() == [2, -1 * 2 - 0.75, 3, 4 / 2 - 0.75]


def test_biases_of_one_token_add_up_and_come_before_penalties():
    options = SamplingOptions(logit_bias=[[1, 3], [1, 2], [2, -1]], repeat_penalty=2.0)
    assert adjusted(np.array([0, -1, 5], np.float32), [1], options).tolist() == [0, 2, 4]


def test_a_short_list_of_ids_has_the_same_biases_and_penalties():
    rng, ids = np.random.default_rng(0), np.array([1, 4, 5, 9])
    logits, history = rng.standard_normal(12).astype(np.float32), [4, 4, 9, 2]
    options = SamplingOptions(logit_bias={4: 1, 7: 9}, presence_penalty=1.5, frequency_penalty=0.3)
    whole = adjusted(logits, history, options)
    assert adjusted(logits[ids], history, options, ids).tolist() == whole[ids].tolist()


def test_a_banned_token_is_never_drawn_but_where_all_are_banned():
    options = SamplingOptions(
        temp=5.0, top_k=0, top_p=1.0, min_p=0.0, seed=1, logit_bias={0: False, 2: False}
    )
    sampler = make_sampler(options)
    assert {sampler(np.zeros(4, np.float32), [9] * length) for length in range(200)} == {1, 3}
    ids, shares = next_law(np.zeros(2, np.float32), (), options, np.array([0, 2]))
    assert (ids.tolist(), shares.tolist()) == ([0, 2], [0.5, 0.5])


# ---- in an answer


def test_biases_of_texts_are_of_their_tokens_and_end_tokens_may_be_banned(tokenizer):
    class Even(FakeBackend):
        def row(self):
            row = np.zeros(self.vocab)
            row[0] = 5.0
            return row

    llm = LLM.of(Even(context=64), tokenizer, CHATML)
    assert llm.generate("x", n=3).text == ""
    answer = llm.generate("x", n=3, ignore_eos=True, logit_bias={"a": 2.0})
    assert (answer.text, answer.finish_reason) == ("aaa", "length")
    with pytest.raises(UsageError, match="the model has 300 tokens"):
        llm.generate("x", logit_bias={300: 1})


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=12),
    st.integers(1, 30),
    st.sampled_from([0.0, 2.0]),
    st.sampled_from([0.0, 0.7, -0.4]),
    st.sampled_from([0.0, 0.6]),
    st.dictionaries(st.integers(0, 29), st.sampled_from([-3.0, 4.0, False]), max_size=4),
)
def test_drafted_answers_and_their_log_probabilities_are_the_plain_ones(
    script, n, temp, presence, frequency, bias
):
    options = SamplingOptions(
        n=n,
        temp=temp,
        seed=5,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
        logprobs=3,
    )
    prompt = [1, 2, 3]
    plain, expected = written(Scheduler(Periodic(vocab=30)), prompt, options)
    drafting = Speculator(Guesser(prompt + plain, script, 30))
    assert written(Scheduler(Periodic(vocab=30), speculator=drafting), prompt, options) == (plain, expected)
    assert [one.token for one in expected] == plain


def written(scheduler, prompt, options):
    answer = Answer(Prompt(prompt, options), {7})
    return list(scheduler.write(answer)), answer.logprobs


def test_log_probabilities_are_of_the_plain_logits_and_the_likeliest_come_first():
    row = np.log(np.array([0.1, 0.4, 0.1, 0.4])).astype(np.float32)
    found = logprob_of(row, 2, 3)
    assert [token for token, _ in found.top] == [1, 3, 0]
    np.testing.assert_allclose(
        [found.logprob, *(p for _, p in found.top)], np.log([0.1, 0.4, 0.4, 0.1]), 1e-6
    )
    assert logprob_of(row, 2).top == ()


def test_a_completion_has_log_probabilities_of_its_tokens_where_they_are_asked_for(tokenizer):
    llm = LLM.of(FakeBackend(context=64), tokenizer, CHATML)
    assert llm.generate("x", n=4).logprobs == ()
    answer = llm.generate("x", n=4, temp=1.0, seed=3, logprobs=0)
    assert [one.token for one in answer.logprobs] == list(answer.tokens)
    assert all(one.logprob < 0 and one.top == () for one in answer.logprobs)


def test_what_a_stop_text_cuts_off_has_no_log_probabilities(tokenizer):
    llm = LLM.of(FakeBackend(context=64), tokenizer, CHATML)
    whole = llm.generate("x", n=8, temp=1.0, seed=3, ignore_eos=True, top_k=0, logprobs=2)
    stop = next(c for c in whole.text if c.isascii() and c.isprintable())
    cut = llm.generate("x", n=8, temp=1.0, seed=3, ignore_eos=True, top_k=0, logprobs=2, stop=stop)
    assert len(cut.tokens) == len(cut.logprobs) < len(whole.tokens)
    assert cut.logprobs == whole.logprobs[: len(cut.tokens)]


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_several_answers_share_the_reading_of_their_prompt_and_differ_in_their_seeds(tokenizer, slots):
    backend = FakeBackend(context=64, slots=slots)
    llm = LLM.of(backend, tokenizer, CHATML)
    wanted = llm.text_prompt("a longer prompt", temp=1.0, seed=4, n=3)
    found = llm.several(wanted, 3)
    assert [answer.seed for answer in found] == [4, 5, 6]
    assert [answer.timings.reused_tokens for answer in found] == [0, *[len(wanted.ids) - 1] * 2]
    alone = [llm.generate("a longer prompt", temp=1.0, seed=seed, n=3).text for seed in (4, 5, 6)]
    assert [answer.text for answer in found] == alone
