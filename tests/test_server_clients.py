"""Shipped clients, unmodified: openai, anthropic, ollama."""

from __future__ import annotations

import pytest

from flatlm.runtime.server.guard import Access
from tests.serving import NAME, serving, tiny_llm

CONTEXT = 1500
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with serving(lambda: tiny_llm(folder, context=CONTEXT), access=Access(("secret",))) as found:
        yield found


@pytest.fixture
def expected(tmp_path):
    return tiny_llm(tmp_path).chat(MESSAGES, n=12)


# ---- openai


@pytest.fixture
def openai(served):
    module = pytest.importorskip("openai")
    with module.OpenAI(base_url=served.url + "/v1", api_key="secret", max_retries=0) as client:
        yield client


def test_openai_chats(openai, expected):
    assert [one.id for one in openai.models.list()] == [NAME]
    whole = openai.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=12, logprobs=True)
    assert whole.choices[0].message.content == expected.text
    assert whole.usage.total_tokens == expected.timings.prompt_tokens + 12
    assert len(whole.choices[0].logprobs.content) == 12
    stream = openai.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected.text
    assert chunks[-1].usage.completion_tokens == 12


def test_openai_completes_and_responds(openai, expected):
    found = openai.completions.create(model=NAME, prompt="hello", max_tokens=5, logprobs=2)
    assert found.usage.completion_tokens == 5
    assert len(found.choices[0].logprobs.token_logprobs) == 5
    response = openai.responses.create(model=NAME, input="hello", max_output_tokens=12)
    assert response.output_text == expected.text
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    with openai.responses.stream(model=NAME, input=MESSAGES, max_output_tokens=12) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(deltas) == expected.text


def test_openai_raises_its_own_errors(openai, served):
    import openai as module

    with pytest.raises(module.BadRequestError, match="exceeds the available context size"):
        openai.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "x" * 2 * CONTEXT}])
    with pytest.raises(module.InternalServerError, match="embeddings"):
        openai.embeddings.create(model=NAME, input="x")
    with (
        pytest.raises(module.AuthenticationError),
        module.OpenAI(base_url=served.url + "/v1", api_key="wrong", max_retries=0) as stranger,
    ):
        stranger.models.list()


# ---- anthropic


@pytest.fixture
def anthropic(served):
    module = pytest.importorskip("anthropic")
    with module.Anthropic(base_url=served.url, api_key="secret", max_retries=0) as client:
        yield client


def test_anthropic_chats(anthropic, expected):
    whole = anthropic.messages.create(model=NAME, max_tokens=12, messages=MESSAGES)
    assert whole.content[0].text == expected.text
    assert whole.stop_reason == "max_tokens"
    assert whole.usage.input_tokens + whole.usage.cache_read_input_tokens == expected.timings.prompt_tokens
    with anthropic.messages.stream(model=NAME, max_tokens=12, messages=MESSAGES) as stream:
        assert "".join(stream.text_stream) == expected.text
        assert stream.get_final_message().usage.output_tokens == 12
    counted = anthropic.messages.count_tokens(model=NAME, messages=MESSAGES)
    assert counted.input_tokens == expected.timings.prompt_tokens


def test_anthropic_is_told_the_stop_text(anthropic, expected):
    mark = expected.text[4]
    found = anthropic.messages.create(
        model=NAME, max_tokens=12, messages=MESSAGES, stop_sequences=["zz", mark], system=""
    )
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", mark)


def test_anthropics_blocks_are_read(anthropic, served):
    blocks = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "c"},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "ok"}]},
    ]
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    system = [{"type": "text", "text": "be"}]
    found = anthropic.messages.create(model=NAME, max_tokens=3, messages=blocks, tools=tools, system=system)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    same = [
        {"role": "system", "content": "be"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "ok"},
    ]
    function = {"name": "f", "description": "", "parameters": {"type": "object"}}
    body = {"messages": same, "tools": [{"type": "function", "function": function}]}
    counted = served.post("/v1/chat/completions/input_tokens", body, headers={"X-Api-Key": "secret"})
    assert found.usage.input_tokens + found.usage.cache_read_input_tokens == counted.json()["input_tokens"]


def test_anthropic_raises_its_own_errors(anthropic):
    import anthropic as module

    with pytest.raises(module.BadRequestError, match="exceeds the available context size"):
        anthropic.messages.create(
            model=NAME, max_tokens=3, messages=[{"role": "user", "content": "x" * 2 * CONTEXT}]
        )
    image = {"type": "image", "source": {"type": "url", "url": "x"}}
    with pytest.raises(module.APIStatusError, match="text only"):
        anthropic.messages.create(model=NAME, max_tokens=3, messages=[{"role": "user", "content": [image]}])


# ---- ollama


@pytest.fixture
def ollama(served):
    module = pytest.importorskip("ollama")
    client = module.Client(host=served.url, headers={"Authorization": "Bearer secret"})
    yield client
    client._client.close()  # it has no public way


def test_ollama_chats(ollama, expected):
    (listed,) = ollama.list().models
    assert listed.model == f"{NAME}:latest"
    assert ollama.show(listed.model).details.family == "llama"
    assert [one.model for one in ollama.ps().models] == [listed.model]
    options = {"num_predict": 12}
    assert ollama.chat(NAME, MESSAGES, options=options).message.content == expected.text
    parts = list(ollama.chat(NAME, MESSAGES, options=options, stream=True))
    assert "".join(part.message.content for part in parts) == expected.text
    assert (parts[-1].done, parts[-1].eval_count) == (True, 12)
    assert ollama.generate(NAME, "hello", options=options).response == expected.text
    assert ollama.pull(NAME).status == "success"


def test_ollama_raises_its_own_errors(ollama):
    import ollama as module

    with pytest.raises(module.ResponseError, match="not found") as missing:
        ollama.chat("llama3", MESSAGES)
    assert missing.value.status_code == 404
    with pytest.raises(module.ResponseError, match="embeddings"):
        ollama.embed(NAME, "x")
