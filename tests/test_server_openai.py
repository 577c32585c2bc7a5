"""OpenAI's dialect, and llama.cpp's own, as their clients read them."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.serving import CONTEXT, NAME, serving, tiny_llm
from tests.tiny_text import CHATML

HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12}
VOCABULARY = 259
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with serving(lambda: tiny_llm(folder), parallel=2, metrics=True) as found:
        yield found


@pytest.fixture
def llm(tmp_path):
    return tiny_llm(tmp_path)


def content(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def prompt_tokens(served, messages, **more):
    return len(served.post("/tokenize", {"content": prompt(served, messages, **more)}).json()["tokens"])


def prompt(served, messages, **more):
    return served.post("/apply-template", {"messages": messages, **more}).json()["prompt"]


# ---- chats


def test_a_stream_has_the_events_that_clients_read(served):
    events = served.events(CHAT, {**HELLO, "stream_options": {"include_usage": True}})
    first, *middle, last, usage = events
    assert len({event["id"] for event in events}) == 1
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert {event["model"] for event in events} == {NAME}
    assert all(event["system_fingerprint"].startswith("b") for event in events)
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}
    ]
    assert all(set(event["choices"][0]["delta"]) == {"content"} for event in middle)
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "length")
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 12)
    text = "".join(event["choices"][0]["delta"]["content"] for event in middle)
    assert text == content(served.post(CHAT, HELLO))


def test_usage_comes_only_where_it_is_asked_for(served):
    assert all("usage" not in event for event in served.events(CHAT, HELLO))


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_a_length_has_three_names(served, name):
    body = {"messages": HELLO["messages"], name: 5}
    assert served.post(CHAT, body).json()["usage"]["completion_tokens"] == 5


def test_no_tokens_read_the_prompt_and_say_nothing(served):
    question = [{"role": "user", "content": "only to be read"}]
    found = served.post(CHAT, {"messages": question, "max_tokens": 0})
    assert content(found) == ""
    again = served.post(CHAT, {"messages": question, "max_tokens": 2}).json()["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] == again["prompt_tokens"] - 1
    (role, end) = served.events(CHAT, {"messages": question, "max_tokens": 0})
    assert (role["choices"][0]["delta"]["content"], end["choices"][0]["delta"]) == (None, {})


def test_parts_of_a_message_are_one_text(served):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    whole = [{"role": "user", "content": "one\ntwo"}]
    assert prompt(served, [{"role": "user", "content": parts}]) == prompt(served, whole)
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    refused = served.post(CHAT, {"messages": image})
    assert refused.status_code == 501
    assert "image_url" in refused.json()["error"]["message"]


def test_a_developer_is_the_system_and_null_is_no_text(served):
    given = [{"role": "developer", "content": "be"}, {"role": "user", "content": None}]
    assert prompt(served, given) == (
        "<|start|>system\nbe<|end|>\n<|start|>user\n<|end|>\n<|start|>assistant\n"
    )


def test_a_last_message_of_the_assistant_is_gone_on_with(served):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I am"}]
    open_end = "<|start|>user\nhi<|end|>\n<|start|>assistant\nI am"
    assert prompt(served, messages) == open_end
    assert prompt(served, messages, continue_final_message=True, add_generation_prompt=False) == open_end
    closed = prompt(served, messages, continue_final_message=False)
    assert closed == open_end + "<|end|>\n<|start|>assistant\n"
    both = {"messages": messages, "continue_final_message": True, "add_generation_prompt": True}
    assert served.post("/apply-template", both).status_code == 400
    twice = {"messages": [*messages, messages[-1]]}
    assert served.post("/apply-template", twice).status_code == 400


@pytest.mark.parametrize("stop", ["x", ["x", "zz"]])
def test_an_answer_ends_before_a_stop_text(served, stop):
    body = {"messages": [{"role": "user", "content": "long"}], "max_tokens": 200}
    whole = content(served.post(CHAT, body))
    mark = whole[20]
    stop = mark if isinstance(stop, str) else [mark, "zz never"]
    found = served.post(CHAT, {**body, "stop": stop})
    assert content(found) == whole[: whole.index(mark)]
    assert found.json()["choices"][0]["finish_reason"] == "stop"
    deltas = [event["choices"][0]["delta"] for event in served.events(CHAT, {**body, "stop": stop})]
    assert "".join(delta.get("content") or "" for delta in deltas) == content(found)


def test_a_seed_repeats_an_answer_and_n_answers_have_seeds_that_follow(served):
    drawn = {**HELLO, "temperature": 1.5, "seed": 7}
    one, two = content(served.post(CHAT, drawn)), content(served.post(CHAT, {**drawn, "seed": 8}))
    both = served.post(CHAT, {**drawn, "n": 2}).json()
    assert [choice["message"]["content"] for choice in both["choices"]] == [one, two]
    assert one != two
    assert both["usage"]["completion_tokens"] == 24
    texts = ["", ""]
    for event in served.events(CHAT, {**drawn, "n": 2}):
        choice = event["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [one, two]


def test_held_tokens_are_told(served):
    first = {"messages": [{"role": "user", "content": "once upon a time there was"}], "max_tokens": 4}
    served.post(CHAT, first)
    again = served.post(CHAT, first).json()
    held = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert held == again["usage"]["prompt_tokens"] - 1 == again["timings"]["cache_n"]
    assert again["timings"]["prompt_n"] == 1


def test_timings_are_finite(served):
    for event in served.events(CHAT, {**HELLO, "max_tokens": 1, "timings_per_token": True})[1:]:
        assert all(value >= 0 for value in event["timings"].values())


def test_progress_of_reading_is_told_where_it_is_asked_for(tmp_path):
    with serving(lambda: tiny_llm(tmp_path, seconds=0.001)) as slow:
        body = {"messages": [{"role": "user", "content": "y" * 300}], "max_tokens": 1}
        events = slow.events(CHAT, {**body, "return_progress": True})
        found = [event["prompt_progress"] for event in events if "prompt_progress" in event]
        assert [one["processed"] for one in found] == sorted({one["processed"] for one in found})
        assert {one["total"] for one in found} == {prompt_tokens(slow, body["messages"])}
        assert all(one["cache"] == 0 for one in found)
        assert (found[0]["processed"], found[-1]["processed"]) == (0, found[-1]["total"])
        assert len(found) > 2
        assert not any("prompt_progress" in event for event in slow.events(CHAT, body))


def test_log_probabilities_are_those_of_the_model(served, llm):
    expected = llm.chat(HELLO["messages"], n=12, logprobs=3).logprobs
    found = served.post(CHAT, {**HELLO, "logprobs": True, "top_logprobs": 3}).json()
    rows = found["choices"][0]["logprobs"]["content"]
    assert [row["logprob"] for row in rows] == [one.logprob for one in expected]
    assert [len(row["top_logprobs"]) for row in rows] == [3] * 12
    assert bytes(byte for row in rows for byte in row["bytes"]).decode(errors="replace") == content(
        served.post(CHAT, HELLO)
    )
    streamed = [
        row
        for event in served.events(CHAT, {**HELLO, "logprobs": True, "top_logprobs": 3})
        for row in (event["choices"][0].get("logprobs") or {"content": []})["content"]
    ]
    assert streamed == rows
    assert served.post(CHAT, {**HELLO, "top_logprobs": 3}).status_code == 400
    assert served.post(CHAT, {**HELLO, "logprobs": True, "top_logprobs": 21}).status_code == 400


def test_biases_and_penalties_reach_the_sampler(served, llm):
    more = {"logit_bias": {"40": 100}, "presence_penalty": 1.0, "frequency_penalty": 0.5}
    expected = llm.chat(HELLO["messages"], n=12, **more).text
    assert content(served.post(CHAT, {**HELLO, **more})) == expected != content(served.post(CHAT, HELLO))


def test_embeddings_are_refused_with_the_reason(served):
    refused = served.post("/v1/embeddings", {"input": "x", "model": NAME})
    assert refused.status_code == 501
    assert refused.json()["error"]["type"] == "not_supported_error"


# ---- completions


def test_a_text_is_continued(served, llm):
    expected = llm.generate("Once upon", n=8)
    found = served.post("/v1/completions", {"prompt": "Once upon", "max_tokens": 8}).json()
    assert found["object"] == "text_completion"
    assert found["choices"][0]["text"] == expected.text
    ids = served.post("/tokenize", {"content": "Once upon"}).json()["tokens"]
    assert served.post("/v1/completions", {"prompt": ids, "max_tokens": 8}).json()["choices"][0]["text"] == (
        expected.text
    )
    events = served.events("/v1/completions", {"prompt": "Once upon", "max_tokens": 8})
    assert "".join(event["choices"][0]["text"] for event in events) == expected.text
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + [
        "length"
    ]


def test_several_texts_are_continued_side_by_side(served, llm):
    found = served.post("/v1/completions", {"prompt": ["one", "two", "six"], "max_tokens": 5}).json()
    assert [choice["text"] for choice in found["choices"]] == [
        llm.generate(text, n=5).text for text in ("one", "two", "six")
    ]


def test_log_probabilities_of_completions_have_the_older_form(served):
    body = {"prompt": "Once", "max_tokens": 6, "logprobs": 2}
    choice = served.post("/v1/completions", body).json()["choices"][0]
    found = choice["logprobs"]
    assert [len(found[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [6] * 4
    assert found["text_offset"][0] == 0
    offsets = [
        offset
        for event in served.events("/v1/completions", body)
        for offset in (event["choices"][0]["logprobs"] or {"text_offset": []})["text_offset"]
    ]
    assert len(offsets) == 6


# ---- llama.cpp's own


def test_llamacpps_completion_says_how_it_ended(served):
    body = {"prompt": "Once upon", "n_predict": 30, "return_tokens": True}
    whole = served.post("/completion", body).json()
    assert (whole["stop"], whole["stop_type"], whole["truncated"]) == (True, "limit", False)
    assert len(whole["tokens"]) == whole["tokens_predicted"] == 30
    mark = whole["content"][10]
    stopped = served.post("/completion", {**body, "stop": ["zz", mark]}).json()
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", mark)
    few = served.post("/completion", {**body, "response_fields": ["content", "timings/prompt_n", "nothing"]})
    assert set(few.json()) == {"content", "timings/prompt_n"}
    assert served.post("/completion", {}).status_code == 400


def test_a_context_that_is_full_is_told(served):
    full = served.post("/completion", {"prompt": "x" * (CONTEXT - 10), "n_predict": 50}).json()
    assert (full["stop_type"], full["truncated"], full["tokens_predicted"]) == ("limit", True, 11)


def test_a_stream_of_llamacpp_ends_with_its_whole(served):
    body = {"prompt": "Once", "n_predict": 6, "stream": True, "n_probs": 2}
    with httpx.stream("POST", served.url + "/completion", json=body) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    *parts, last = events
    whole = served.post("/completion", {**body, "stream": False}).json()
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert (last["stop"], last["content"], last["stop_type"]) == (True, "", "limit")
    rows = [row for part in parts for row in part.get("completion_probabilities", [])]
    assert rows == whole["completion_probabilities"]


def test_mixed_and_many_prompts(served, llm):
    ids = served.post("/tokenize", {"content": "ab"}).json()["tokens"]
    for prompt_ in (
        "abcd",
        [*ids, "cd"],
        ["ab", *served.post("/tokenize", {"content": "cd"}).json()["tokens"]],
    ):
        found = served.post("/completion", {"prompt": prompt_, "n_predict": 4}).json()
        assert found["content"] == llm.generate("abcd", n=4).text
    many = served.post(
        "/completion", {"prompt": ["abcd", ids, {"prompt_string": "x"}], "n_predict": 4}
    ).json()
    assert [one["content"] for one in many] == [llm.generate(text, n=4).text for text in ("abcd", "ab", "x")]
    for wrong in ([], [[]], [1.5], ["a", -1], 7, [VOCABULARY]):
        assert served.post("/completion", {"prompt": wrong}).status_code == 400


def test_tokens_and_texts_are_each_others_inverse(served):
    text = "é 水 <|start|>"
    found = served.post("/tokenize", {"content": text, "with_pieces": True}).json()["tokens"]
    assert any(isinstance(one["piece"], list) for one in found)  # bytes of a character
    data = b"".join(
        bytes(one["piece"]) if isinstance(one["piece"], list) else one["piece"].encode() for one in found
    )
    assert data.decode() == text
    ids = [one["id"] for one in found]
    assert served.post("/tokenize", {"content": text}).json()["tokens"] == ids
    assert served.post("/detokenize", {"tokens": ids}).json()["content"] == text


def test_what_the_server_is_and_does(served):
    assert served.get("/health").json() == {"status": "ok"}
    found = served.get("/props").json()
    assert (found["total_slots"], found["chat_template"], found["is_sleeping"]) == (2, CHATML, False)
    assert found["default_generation_settings"]["n_ctx"] == CONTEXT
    served.until_idle()
    assert [slot["is_processing"] for slot in served.get("/slots").json()] == [False, False]


def test_prometheus_reads_counters(served):
    before = counters(served)
    served.post("/completion", {"prompt": "count me", "n_predict": 9, "cache_prompt": False})
    served.until_idle()
    after = counters(served)
    assert after["llamacpp:tokens_predicted_total"] - before["llamacpp:tokens_predicted_total"] == 9
    assert (
        after[f'flatlm_tokens_predicted_total{{model="{NAME}"}}'] == after["llamacpp:tokens_predicted_total"]
    )
    assert after["llamacpp:requests_processing"] == 0


def counters(served):
    response = served.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    rows = [line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in rows}


def test_metrics_and_slots_are_answered_only_where_that_is_wanted(tmp_path):
    with serving(lambda: tiny_llm(tmp_path), no_slots=True) as closed:
        assert closed.get("/metrics").status_code == 501
        assert closed.get("/slots").status_code == 501
