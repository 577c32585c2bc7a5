"""Calls of tools in each dialect: held to their schemas where one must be, streamed as it is whole."""

from __future__ import annotations

import json

import pytest

from tests.serving import NAME, serving, tiny_llm
from tests.tiny_text import CHATML

pytest.importorskip("llguidance")

TEMPLATE = (  # of Hermes' family
    "{% if tools %}<|start|>system\n{{ tools | tojson }} in <tool_call></tool_call><|end|>\n{% endif %}"
    + CHATML
)
SCHEMA = {
    "type": "object",
    "properties": {"room": {"enum": ["bath", "hall"]}, "on": {"type": "boolean"}},
    "required": ["room", "on"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "light", "description": "a light", "parameters": SCHEMA}}
OTHER = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}
MESSAGES = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with serving(lambda: tiny_llm(folder, context=1500, template=TEMPLATE)) as found:
        yield found


def fits(arguments):
    room, on = arguments.pop("room"), arguments.pop("on")
    return room in ("bath", "hall") and type(on) is bool and not arguments


REQUEST = {"messages": MESSAGES, "tools": [TOOL, OTHER], "max_tokens": 200, "temperature": 1.0}
NAMED = {**REQUEST, "tool_choice": {"type": "function", "function": {"name": "light"}}}


@pytest.mark.parametrize("seed", range(5))
def test_a_call_that_must_be_fits_its_schema_streamed_or_not(served, seed):
    body = {**NAMED, "seed": seed}
    choice = served.post(CHAT, body).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "light")
    assert fits(json.loads(call["function"]["arguments"]))
    assert choice["finish_reason"] == "tool_calls"
    deltas = [one["choices"][0]["delta"] for one in served.events(CHAT, body)]
    parts = [part for delta in deltas for part in delta.get("tool_calls", [])]
    assert {part["index"] for part in parts} == {0}
    assert [part["function"].get("name") for part in parts if "id" in part] == ["light"]
    assert "".join(part["function"]["arguments"] for part in parts) == call["function"]["arguments"]


def test_required_calls_one_of_them_and_none_calls_nothing(served):
    found = served.post(CHAT, {**REQUEST, "tool_choice": "required"}).json()["choices"][0]["message"]
    assert found["tool_calls"][0]["function"]["name"] in ("light", "clock")
    free = served.post(CHAT, {**REQUEST, "tool_choice": "none", "max_tokens": 5}).json()["choices"][0]
    assert "tool_calls" not in free["message"]
    assert free["finish_reason"] == "length"


def test_a_choice_that_there_is_not_is_refused(served):
    for choice in ("light switch", {"type": "function", "function": {"name": "x"}}, 7):
        assert served.post(CHAT, {**REQUEST, "tool_choice": choice}).status_code == 400
    assert served.post(CHAT, {**REQUEST, "tools": [{"type": "function"}]}).status_code == 400
    assert served.post(CHAT, {**REQUEST, "tools": [TOOL] * 129}).status_code == 400


def test_broken_arguments_in_the_history_are_text_and_no_error(served):
    call = {"id": "1", "type": "function", "function": {"name": "light", "arguments": '{"room": '}}
    history = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
    history.append({"role": "tool", "tool_call_id": "1", "content": "failed"})
    assert served.post(CHAT, {**REQUEST, "messages": history, "max_tokens": 3}).status_code == 200


def test_ollamas_calls_have_objects_as_arguments(served):
    body = {"model": NAME, "messages": MESSAGES, "tools": [TOOL], "options": {"num_predict": 5}}
    assert served.lines("/api/chat", body)[-1]["done"]
    template = served.post("/api/show", {"model": NAME}).json()
    assert "tools" in template["capabilities"]


def test_anthropics_calls_are_blocks(served):
    anthropic = pytest.importorskip("anthropic")
    tools = [{"name": "light", "input_schema": SCHEMA}]
    more = {"model": NAME, "max_tokens": 200, "messages": MESSAGES, "tools": tools}
    choice = {"type": "tool", "name": "light"}
    with anthropic.Anthropic(base_url=served.url, api_key="x") as client:
        whole = client.messages.create(**more, tool_choice=choice)
        assert whole.stop_reason == "tool_use"
        assert [block.type for block in whole.content] == ["tool_use"]
        assert fits(dict(whole.content[0].input))
        with client.messages.stream(**more, tool_choice=choice) as stream:
            streamed = stream.get_final_message()
        assert streamed.content[0].input == whole.content[0].input
        assert streamed.stop_reason == "tool_use"


def test_responses_have_calls_as_items(served):
    openai = pytest.importorskip("openai")
    tools = [{"type": "function", "name": "light", "parameters": SCHEMA}]
    more = {"model": NAME, "input": "hello", "max_output_tokens": 200, "tools": tools}
    with openai.OpenAI(base_url=served.url + "/v1", api_key="x") as client:
        whole = client.responses.create(**more, tool_choice="required")
        (item,) = whole.output
        assert (item.type, item.name, whole.status) == ("function_call", "light", "completed")
        assert fits(json.loads(item.arguments))
        with client.responses.stream(**more, tool_choice="required") as stream:
            events = list(stream)
        pieces = [one.delta for one in events if one.type == "response.function_call_arguments.delta"]
        assert "".join(pieces) == item.arguments


def test_thoughts_are_told_from_the_answer(tmp_path):
    template = CHATML + "{# <think> #}{% if add_generation_prompt %}<think>\n{% endif %}"
    with serving(lambda: tiny_llm(tmp_path, template=template)) as one:
        found = one.post(CHAT, {"messages": MESSAGES, "max_tokens": 9}).json()["choices"][0]["message"]
        assert (found["content"], len(found["reasoning_content"]) > 0) == ("", True)
        events = one.events(CHAT, {"messages": MESSAGES, "max_tokens": 9})
        deltas = [event["choices"][0]["delta"] for event in events]
        thoughts = "".join(delta.get("reasoning_content", "") for delta in deltas)
        assert thoughts.strip() == found["reasoning_content"].strip()
        body = {"model": NAME, "messages": MESSAGES, "options": {"num_predict": 9}, "stream": False}
        assert one.post("/api/chat", body).json()["message"]["thinking"] == found["reasoning_content"]
