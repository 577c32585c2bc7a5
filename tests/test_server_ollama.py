"""Ollama's dialect, as Home Assistant, Open WebUI and Ollama's own clients read it."""

from __future__ import annotations

import time

import pytest

from flatlm.runtime.errors import UsageError
from flatlm.runtime.server.ollama import duration
from tests.serving import CONTEXT, NAME, serving, tiny_llm

FULL = f"{NAME}:latest"
HELLO = {"model": FULL, "messages": [{"role": "user", "content": "hello"}], "options": {"num_predict": 12}}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with serving(lambda: tiny_llm(folder)) as found:
        yield found


@pytest.fixture
def llm(tmp_path):
    return tiny_llm(tmp_path)


def test_a_chat_is_lines_and_the_last_says_what_it_cost(served, llm):
    expected = llm.chat(HELLO["messages"], n=12)
    *parts, last = served.lines("/api/chat", HELLO)
    assert "".join(part["message"]["content"] for part in parts) == expected.text
    assert {part["message"]["role"] for part in parts} == {"assistant"}
    assert not any(part["done"] for part in parts)
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "length", "")
    assert last["prompt_eval_count"] == expected.timings.prompt_tokens
    assert last["eval_count"] == 12
    for name in ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"):
        assert isinstance(last[name], int)
        assert 0 <= last[name] < 60 * 10**9
    assert last["total_duration"] > last["eval_duration"] > 0


def test_a_chat_may_come_whole(served, llm):
    found = served.post("/api/chat", {**HELLO, "stream": False}).json()
    assert found["message"] == {"role": "assistant", "content": llm.chat(HELLO["messages"], n=12).text}
    assert found["done"] is True


def test_home_assistants_request_is_answered(tmp_path):
    body = {
        "model": FULL,
        "messages": [
            {"role": "system", "content": "You are a voice assistant."},
            {"role": "user", "content": "light", "images": None},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "HassTurnOn", "arguments": {"name": "light"}}}],
            },
            {"role": "tool", "content": '{"ok": true}'},
            {"role": "user", "content": "thanks"},
        ],
        "tools": [{"type": "function", "function": {"name": "HassTurnOn", "parameters": {}}}],
        "stream": True,
        "keep_alive": -1,
        "options": {"num_ctx": 8192, "num_predict": 5},
        "think": False,
        "format": None,
    }
    with serving(lambda: tiny_llm(tmp_path, context=1500)) as one:
        assert one.lines("/api/chat", body)[-1]["eval_count"] == 5


def test_a_text_is_answered_through_the_template_and_raw_as_it_is(served, llm):
    body = {"model": FULL, "prompt": "hello", "options": {"num_predict": 6}, "stream": False}
    chat = served.post("/api/generate", body).json()
    assert chat["response"] == llm.chat([{"role": "user", "content": "hello"}], n=6).text
    raw = served.post("/api/generate", {**body, "raw": True}).json()
    assert raw["response"] == llm.generate("hello", n=6).text
    system = served.post("/api/generate", {**body, "system": "be"}).json()
    expected = [{"role": "system", "content": "be"}, {"role": "user", "content": "hello"}]
    assert system["response"] == llm.chat(expected, n=6).text
    assert len(chat["context"]) == chat["prompt_eval_count"] + 6
    more = served.post("/api/generate", {**body, "context": chat["context"]}).json()
    assert more["prompt_eval_count"] == len(chat["context"]) + chat["prompt_eval_count"]


def test_models_are_listed_with_what_clients_read(served):
    assert served.get("/api/version").json()["version"].count(".") == 2
    (row,) = served.get("/api/tags").json()["models"]
    assert row["name"] == row["model"] == FULL
    assert set(row) >= {"modified_at", "size", "digest", "details"}
    for name in (NAME, FULL):
        shown = served.post("/api/show", {"model": name}).json()
        assert shown["capabilities"] == ["completion"]
        assert shown["model_info"]["llama.context_length"] == CONTEXT
        assert f"num_ctx {CONTEXT}" in shown["parameters"]
    assert served.get("/").text == "Ollama is running"
    assert served.post("/api/pull", {"model": NAME}).json() == {"status": "success"}


def test_a_model_that_is_not_served_is_not_found(served):
    for path in ("/api/chat", "/api/show", "/api/pull", "/api/generate"):
        missing = served.post(path, {"model": "llama3", "messages": [], "prompt": "x"})
        assert (missing.status_code, missing.json()) == (404, {"error": "model 'llama3' not found"})
    assert served.post("/api/embed", {"model": NAME, "input": "x"}).status_code == 501
    assert served.post("/api/chat", {}).status_code == 400


def test_a_prompt_that_is_too_long_is_never_cut(served):
    long = {**HELLO, "messages": [{"role": "user", "content": "x" * 500}], "options": {"num_ctx": 100_000}}
    refused = served.post("/api/chat", long)
    assert refused.status_code == 400
    assert "500" not in refused.json()["error"]
    assert f"({CONTEXT} tokens)" in refused.json()["error"]


def test_keep_alive_says_how_long_a_model_stays(tmp_path):
    with serving(lambda: tiny_llm(tmp_path)) as one:
        loaded = one.post("/api/chat", {"model": NAME, "messages": [], "keep_alive": "5m"}).json()
        assert (loaded["done"], loaded["done_reason"]) == (True, "load")
        (row,) = one.get("/api/ps").json()["models"]
        assert row["expires_at"] > row["modified_at"]
        unloaded = one.post("/api/generate", {"model": NAME, "keep_alive": 0}).json()
        assert unloaded["done_reason"] == "unload"
        while one.host.loaded:
            time.sleep(0.01)
        assert one.get("/api/ps").json()["models"] == []
        one.lines("/api/chat", {**HELLO, "keep_alive": -1})
        (row,) = one.get("/api/ps").json()["models"]
        assert row["expires_at"].startswith("2318")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (5, 5),
        (1.5, 1.5),
        ("300", 300),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        (-1, -1),
        ("-1m", -1),
        (0, 0),
    ],
)
def test_durations_are_those_of_go(given, seconds):
    assert duration(given) == seconds


@pytest.mark.parametrize("given", ["", "5 minutes", "m", True, [], "1x"])
def test_what_is_no_duration_is_refused(given):
    with pytest.raises(UsageError, match="keep_alive"):
        duration(given)
