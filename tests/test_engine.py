"""runtime.generation and llm: what is fed to a backend, when an answer ends, what leaves as text."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatlm.runtime.drafting.verify import invariant
from flatlm.runtime.errors import BackendError, ContextError, TokenizerError, UsageError
from flatlm.runtime.generation.answer import Answer, Prompt
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.generation.sequence import common_start
from flatlm.runtime.llm import LLM, NoTemplateWarning
from flatlm.runtime.options import SamplingOptions
from flatlm.runtime.text.stop_text import StopText
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.tiny_text import CHATML, FakeBackend, ScriptedBackend, byte_level, write_folder


def asked(prompt, n=-1, stop_ids=(), progress=None):
    return Answer(Prompt(prompt, SamplingOptions(n=n)), stop_ids, progress=progress)


def take(backend, prompt, n=-1, chunk=128, **options):
    return list(Scheduler(backend, chunk=chunk).write(asked(prompt, n, **options)))


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(write_folder(tmp_path, byte_level()))


@pytest.fixture
def answering(tokenizer):
    """An LLM that answers any prompt with a text."""

    def make(text, template=None, end=0, **options):
        answer = [*tokenizer.encode(text, special=False), end]
        return LLM.of(ScriptedBackend(answer, **options), tokenizer, template)

    return make


# ---- ids


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40), st.integers(0, 40))
def test_common_start_is_where_two_sequences_part(a, b, shared):
    b = a[:shared] + b
    different = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    assert common_start(a, b) == min([*different, len(a), len(b)])
    assert common_start(tuple(a), b) == common_start(b, a)


def test_an_answer_is_the_script_up_to_its_stop_id():
    assert take(ScriptedBackend([5, 6, 7, 2, 9]), [3, 4], stop_ids={2}) == [5, 6, 7, 2]


def test_n_limits_the_answer_and_the_last_id_is_not_fed_back():
    backend = ScriptedBackend([5, 6, 7, 8])
    assert take(backend, [3, 4], n=2) == [5, 6]
    assert backend.ids == [3, 4, 5]


def test_n_of_zero_computes_nothing():
    backend = ScriptedBackend([5])
    assert take(backend, [3, 4], n=0) == []
    assert backend.calls == []


@pytest.mark.parametrize("length", [1, 7, 8])
def test_an_answer_ends_where_the_context_is_full(length):
    assert len(take(FakeBackend(context=8), [3] * length)) == 8 - length + 1


def test_a_prompt_longer_than_the_context_gives_both_numbers():
    with pytest.raises(ContextError, match="9 tokens long, the context holds 8"):
        take(FakeBackend(context=8), [3] * 9)


def test_a_tokenizer_of_another_model_is_an_error():
    with pytest.raises(TokenizerError, match="id 300, the model has 300"):
        take(FakeBackend(vocab=300), [5, 300])


def test_an_empty_prompt_is_wrong_use():
    with pytest.raises(UsageError, match="empty"):
        take(FakeBackend(), [])


def test_a_prompt_is_read_in_chunks_with_progress():
    backend, seen = FakeBackend(), []
    take(backend, list(range(7)), 1, chunk=3, progress=lambda done, total: seen.append((done, total)))
    assert backend.calls == [[0, 1, 2], [3, 4, 5], [6]]
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_the_chunk_size_does_not_change_the_answer():
    prompt = list(range(10))
    assert take(FakeBackend(), prompt, 8, chunk=3) == take(FakeBackend(), prompt, 8, chunk=64)


def test_a_second_prompt_reads_only_what_differs_and_answers_the_same():
    backend = FakeBackend()
    scheduler, second = Scheduler(backend), asked([1, 2, 3, 9, 8], 3)
    list(scheduler.write(asked([1, 2, 3, 4], 3)))
    assert scheduler.slots.held() == backend.ids
    backend.calls.clear()
    answer = list(scheduler.write(second))
    assert backend.calls[0] == [9, 8]
    assert second.reused == 3
    assert answer == take(FakeBackend(), [1, 2, 3, 9, 8], 3)


def test_the_same_prompt_again_reads_its_last_token_again():
    backend = FakeBackend()
    scheduler = Scheduler(backend)
    first = list(scheduler.write(asked([1, 2, 3], 3)))
    backend.calls.clear()
    assert list(scheduler.write(asked([1, 2, 3], 3))) == first
    assert backend.calls[0] == [3]


def test_a_new_answer_is_right_after_an_interrupt_between_backend_and_bookkeeping():
    backend = FakeBackend()
    scheduler = Scheduler(backend)
    list(scheduler.write(asked([1, 2, 3], 2)))
    backend.forward(np.array([7]))  # the backend took a token that the slot does not know of
    again = list(scheduler.write(asked([1, 2, 3, 4, 5], 3)))
    assert again == take(FakeBackend(), [1, 2, 3, 4, 5], 3)


def test_the_sampler_sees_prompt_and_answer():
    seen = []

    def sampler(logits, history, ids=None):
        seen.append(list(history))
        return 9

    answer = Answer(Prompt([1, 2], SamplingOptions(n=3)), law=invariant(sampler))
    list(Scheduler(FakeBackend()).write(answer))
    assert seen == [[1, 2], [1, 2, 9], [1, 2, 9, 9]]


# ---- text


def test_an_answer_is_the_text_before_the_end_token(answering):
    answer = answering("Paris 🙂").generate("The capital is")
    assert (answer.text, answer.finish_reason) == ("Paris 🙂", "stop")


def test_the_pieces_of_a_stream_are_the_completion(answering):
    llm = answering("漢字 and 🙂 text")
    assert "".join(llm.stream("a prompt")) == llm.generate("a prompt").text == "漢字 and 🙂 text"


def test_a_completion_counts_its_tokens_and_times(answering):
    llm = answering("four")
    answer = llm.generate("prompt")
    assert (answer.timings.prompt_tokens, answer.timings.generated_tokens, len(answer.tokens)) == (6, 5, 4)
    assert answer.timings.prefill_seconds > 0 < answer.timings.decode_seconds
    assert answer.timings.prefill_rate > 0 < answer.timings.decode_rate
    assert llm.generate("prompt").timings.reused_tokens == 5


def test_n_ends_an_answer_for_its_length(answering):
    answer = answering("Paris").generate("x", n=3)
    assert (answer.text, answer.finish_reason) == ("Par", "length")


def test_half_a_character_at_the_end_is_replaced(answering):
    assert answering("a字").generate("x", n=2).text == "a\ufffd"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["END"], "some text "),
        (["text", "END"], "some "),
        (["s"], ""),
        (["EN!", "ND"], "some text E"),
        (["xyz"], "some text END of it E"),
        (["Ex"], "some text END of it E"),
        (["me te"], "so"),
    ],
)
def test_a_stop_text_ends_an_answer_and_never_shows(answering, stop, expected):
    llm = answering("some text END of it E")
    pieces = list(llm.stream("x", stop=stop))
    assert "".join(pieces) == expected
    shown = list(itertools.accumulate(pieces))
    assert all(expected.startswith(text) for text in shown)


def test_an_answer_ended_by_a_stop_text_computes_no_further(answering):
    llm = answering("abc." + "d" * 20)
    assert llm.generate("x", stop=".").finish_reason == "stop"
    assert llm.backend.position == 1 + 3


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_stop_texts_are_found_wherever_the_pieces_are_cut(size):
    text, stops = "aabaabaaab|after", ["aaab", "|"]
    watch, shown = StopText(stops), ""
    for start in range(0, len(text), size):
        shown += watch.push(text[start : start + size])
        if watch.found:
            break
    assert (shown, watch.found) == ("aabaab", "aaab")


def test_a_chat_goes_through_the_template(answering):
    llm = answering("hi", CHATML)
    llm.chat([{"role": "user", "content": "hello"}])
    text = "<|start|>user\nhello<|end|>\n<|start|>assistant\n"
    assert llm.backend.ids[: -len("hi")] == llm.tokenizer.encode(text)


def test_a_second_turn_of_a_chat_reads_only_the_new_message(answering):
    llm = answering("hi", CHATML, context=256)
    messages = [{"role": "user", "content": "hello"}]
    first = llm.chat(messages)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "more"}]
    second = llm.chat(messages)
    assert second.timings.reused_tokens == first.timings.prompt_tokens + 2


def test_a_model_without_a_template_says_so(answering):
    with pytest.warns(NoTemplateWarning):
        assert answering("hi").chat([{"role": "user", "content": "hello"}]).text == "hi"


def test_a_prompt_that_does_not_fit_fails_before_anything_runs(answering):
    llm = answering("hi", context=4)
    with pytest.raises(ContextError, match="11 tokens long, the context holds 4"):
        llm.stream("long prompt")
    assert llm.backend.calls == []


def test_an_interrupt_keeps_what_was_produced_and_the_next_answer_is_right(answering):
    llm = answering("Paris", interrupt_at=3)
    stream = llm.stream("x")
    with pytest.raises(KeyboardInterrupt):
        stream.run()
    assert (stream.completion.text, stream.completion.finish_reason) == ("Par", "interrupted")
    assert llm.generate("x").text == "Paris"


def test_a_new_answer_ends_the_one_before(answering):
    llm = answering("Paris")
    first = llm.stream("x")
    next(first)
    assert llm.generate("x").text == "Paris"
    with pytest.raises(UsageError, match=r"another answer was begun.*answer_many"):
        next(first)
    assert (first.completion.text, first.completion.finish_reason) == ("P", "interrupted")


def test_a_seed_repeats_an_answer_and_is_reported(tokenizer):
    def answer(**options):
        return LLM.of(FakeBackend(vocab=259), tokenizer).generate("x", temp=1.0, n=20, **options)

    drawn = answer()
    assert answer(seed=drawn.seed).tokens == drawn.tokens
    assert answer(seed=1).tokens == answer(seed=1).tokens != answer(seed=2).tokens


def test_an_llm_closes_its_backend(tokenizer):
    with LLM.of(FakeBackend(), tokenizer) as llm:
        pass
    assert llm.backend.closed


def test_broken_logits_are_an_error_of_the_backend(tokenizer):
    class Broken(FakeBackend):
        def row(self):
            return np.full(self.vocab, np.nan)

    with pytest.raises(BackendError, match="logits"):
        LLM.of(Broken(), tokenizer).generate("x")
