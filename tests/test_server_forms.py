"""Answers of a given form, asked for in each dialect."""

from __future__ import annotations

import json

import pytest

from tests.serving import NAME, serving, tiny_llm

pytest.importorskip("llguidance")
MESSAGES = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "level": {"enum": [1, 2, 3]}},
    "required": ["on", "level"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with serving(lambda: tiny_llm(folder)) as found:
        yield found


def fits(text):
    found = json.loads(text)
    return set(found) == {"on", "level"} and type(found["on"]) is bool and found["level"] in (1, 2, 3)


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"response_format": {"type": "json_schema", "schema": SCHEMA}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"json_schema": SCHEMA},
    ],
)
def test_openais_and_llamacpps_ways_to_ask_for_a_schema(served, form):
    chat = served.post("/v1/chat/completions", {"messages": MESSAGES, **form}).json()
    assert fits(chat["choices"][0]["message"]["content"])
    deltas = [
        one["choices"][0]["delta"]
        for one in served.events("/v1/chat/completions", {"messages": MESSAGES, **form})
    ]
    assert "".join(delta.get("content") or "" for delta in deltas) == chat["choices"][0]["message"]["content"]
    assert fits(served.post("/completion", {"prompt": "hello", **form}).json()["content"])


def test_a_schema_in_the_other_dialects(served):
    body = {"model": NAME, "messages": MESSAGES, "prompt": "hello", "format": SCHEMA, "stream": False}
    assert fits(served.post("/api/chat", body).json()["message"]["content"])
    assert fits(served.post("/api/generate", body).json()["response"])
    text = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
    found = served.post("/v1/responses", {"input": "hello", "text": text}).json()
    assert fits(found["output"][0]["content"][0]["text"])


def test_a_grammar_is_kept_to(served):
    found = served.post("/completion", {"prompt": "hello", "grammar": 'root ::= "yes" | "no"'}).json()
    assert found["content"] in ("yes", "no")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "sound"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_object", "schema": 7}},
        {"response_format": {"type": "json_object", "schema": {"type": "nothing"}}},
        {"grammar": "root ::= a z"},
        {"grammar": 'root ::= "a"', "json_schema": {}},
        {"logit_bias": {"999": 1}},
    ],
)
def test_a_form_that_is_none_is_refused_before_a_stream_begins(served, form, stream):
    refused = served.post("/v1/chat/completions", {"messages": MESSAGES, "stream": stream, **form})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"]
