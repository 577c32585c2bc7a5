"""The plugin of `llm`: its messages, options, tools and schemas, and what comes back."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from flatlm.runtime import llm_plugin
from flatlm.runtime.errors import UsageError
from flatlm.runtime.llm import LLM
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.test_tools import QWEN, TOOLS
from tests.tiny_text import FakeBackend, ScriptedBackend, byte_level, write_folder


def part(kind, **values):
    return type(kind, (), values)()


def message(role, *parts):
    return SimpleNamespace(role=role, parts=parts)


CHAIN = [
    message("system", part("TextPart", text="Be brief.")),
    message("user", part("TextPart", text="1 - 2?")),
    message(
        "assistant",
        part("ReasoningPart", text="hm"),
        part("ToolCallPart", name="add", arguments={"a": 1, "b": -2}, tool_call_id="abc"),
    ),
    message("tool", part("ToolResultPart", name="add", output="-1", tool_call_id="abc")),
    message("user", part("TextPart", text="and"), part("TextPart", text="then?")),
]


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(write_folder(tmp_path, byte_level()))


def opens(monkeypatch, llm):
    monkeypatch.setattr(llm_plugin, "opened", lambda name: llm)


def test_messages_are_openais():
    assert llm_plugin.messages_of(CHAIN) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 - 2?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "abc",
                    "type": "function",
                    "function": {"name": "add", "arguments": {"a": 1, "b": -2}},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "abc", "content": "-1"},
        {"role": "user", "content": "and\nthen?"},
    ]
    with pytest.raises(UsageError, match="AttachmentPart: the model reads text only"):
        llm_plugin.messages_of([message("user", part("AttachmentPart"))])


class Response:
    def __init__(self):
        self.calls, self.usage = [], None

    def add_tool_call(self, call):
        self.calls.append(call)

    def set_usage(self, **usage):
        self.usage = usage


def test_an_answer_comes_in_pieces_with_its_calls_and_its_cost(tokenizer, monkeypatch):
    text = 'I add.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": -2}}\n</tool_call>'
    script = [*tokenizer.encode(text, special=False), 0]
    opens(monkeypatch, LLM.of(ScriptedBackend(script, context=2000), tokenizer, QWEN))
    tools = [
        SimpleNamespace(name=f["name"], description=f.get("description"), input_schema=f["parameters"])
        for f in (tool["function"] for tool in TOOLS)
    ]
    asked = SimpleNamespace(options=[("seed", 3), ("top_k", None)], schema=None, tools=tools, messages=CHAIN)
    response = Response()
    pieces = list(llm_plugin.execute("m", asked, response, dict))
    assert "".join(pieces) == "I add." and len(pieces) > 2
    assert [(call["name"], call["arguments"]) for call in response.calls] == [("add", {"a": 1, "b": -2})]
    assert response.usage["output"] == len(script) and response.usage["input"] > 100


def test_the_plugin_is_made_when_it_is_asked_for():
    with pytest.raises(AttributeError, match="no attribute 'plugins'"):
        _ = llm_plugin.plugins


def test_llm_itself_prompts_with_schemas_and_embeds(tokenizer, monkeypatch, tmp_path):
    llm = pytest.importorskip("llm")
    pytest.importorskip("llguidance")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "flatlm.json").write_text("{}")
    monkeypatch.setenv("FLATLM_MODELS", str(tmp_path))
    opens(monkeypatch, LLM.of(FakeBackend(vocab=300, context=600), tokenizer, QWEN))
    found, vectors = [], []
    llm_plugin.plugin.register_models(found.append)
    llm_plugin.plugin.register_embedding_models(vectors.append)
    assert [model.model_id for model in found] == [model.model_id for model in vectors] == ["flatlm/tiny"]
    (model,) = found
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    response = model.prompt("hi", schema=schema, system="Be brief.", temperature=1.0, seed=2, max_tokens=40)
    assert json.loads(response.text())["a"] in (1, 2) and response.input_tokens > 10
    with pytest.raises(llm.ModelError, match=r"prompt is \d+ tokens long"):
        model.prompt("x" * 1000).text()
    monkeypatch.setattr(LLM, "embed", lambda self, texts: __import__("numpy").ones((len(texts), 2)))
    assert vectors[0].embed("hi") == [1.0, 1.0]
