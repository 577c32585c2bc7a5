"""The Python interface as people guess it: keywords, names from elsewhere, the page's examples."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from flatlm.runtime import keywords
from flatlm.runtime.errors import UsageError
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import (
    OTHER_NAMES,
    BackendOptions,
    DraftOptions,
    PromptOptions,
    SamplingOptions,
    of_call,
)
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.tiny_text import CHATML, FakeBackend, ScriptedBackend, byte_level, write_folder

PAGE = Path(__file__).parent.parent / "docs" / "python.md"


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(write_folder(tmp_path, byte_level()))


@pytest.fixture
def llm(tokenizer):
    answer = [*tokenizer.encode("Paris.", special=False), 0]
    return LLM.of(ScriptedBackend(answer, context=600, slots=2), tokenizer, CHATML)


def fields(*classes):
    return {item.name for cls in classes for item in dataclasses.fields(cls)}


def test_the_typed_keywords_are_the_declared_options_and_their_other_names():
    assert set(keywords.OpenKeywords.__annotations__) == fields(BackendOptions, DraftOptions)
    sampling = fields(SamplingOptions) | set(OTHER_NAMES)
    assert set(keywords.SamplingKeywords.__annotations__) == sampling
    tools = {"tools", "tool_choice", "parallel_tool_calls"}
    assert set(keywords.ChatKeywords.__annotations__) - tools == sampling | fields(PromptOptions)


def test_names_of_other_libraries_are_options_too():
    assert of_call(SamplingOptions, (), {"max_tokens": 3, "temperature": 0.5}) == SamplingOptions(
        n=3, temp=0.5
    )
    with pytest.raises(UsageError, match="max_tokens and n are one option"):
        of_call(SamplingOptions, (), {"max_tokens": 3, "n": 3})
    assert of_call(SamplingOptions, (), {"max_tokens": None, "n": 3}).n == 3


def test_a_text_is_a_message_of_the_user(llm):
    messages = [{"role": "user", "content": "Where?"}]
    assert llm.chat_prompt("Where?") == llm.chat_prompt(messages)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Where?"}]}]
    assert llm.chat_prompt(parts) == llm.chat_prompt(messages)
    assert str(llm.chat("Where?")) == "Paris."


def test_a_mistake_in_a_keyword_is_named(llm):
    with pytest.raises(UsageError, match="'temprature'; did you mean 'temperature'"):
        llm.chat("hi", temprature=1)
    with pytest.raises(UsageError, match="unknown option 'tool'"):
        llm.chat("hi", tool=[])
    for messages in (["hi"], [{"content": "hi"}], [3]):
        with pytest.raises(UsageError, match="must be an object with role and content"):
            llm.chat(messages)
    for messages in ([], 5, None):
        with pytest.raises(UsageError, match="a list of at least one message is needed"):
            llm.chat(messages)
    for role in ("user", "system"):
        with pytest.raises(UsageError, match=f"a message of the {role} needs content"):
            llm.chat([{"role": role, "contnet": "hi"}])
    with pytest.raises(UsageError, match="a text is needed, not None"):
        llm.tokenize(None)


def test_texts_and_ids_and_how_many(llm):
    ids = llm.tokenize("Hé")
    assert len(ids) == 3 and llm.detokenize(ids) == "Hé"
    assert llm.detokenize([1, *ids, 0], special=True) == "<|start|>Hé<|end|>"
    assert llm.count_tokens("Hé") == len(llm.chat_prompt("Hé").ids) > 3


def test_a_model_says_what_it_is(llm, tokenizer):
    assert repr(llm) == "LLM(of parts, fake, context 600, batch 2)"
    llm.close()
    assert repr(llm) == "LLM(closed)"
    assert "text='Paris.'" in repr(LLM.of(llm.backend, tokenizer, CHATML).chat("Where?"))


def test_the_examples_of_the_page_run_in_order(tokenizer, monkeypatch, capsys):
    pytest.importorskip("llguidance")

    def opened(*given, **options):
        return LLM.of(FakeBackend(vocab=300, context=1200, slots=2), tokenizer, CHATML)

    monkeypatch.setattr("flatlm.runtime.llm.LLM", opened)
    names, llm = {}, opened()
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 8
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
        names["llm"] = llm  # the page's own is closed where its block ends
    said = capsys.readouterr().out.rstrip()
    assert "did you mean 'temperature'" in said
    assert said.splitlines()[-1].startswith("11 Hello world ")
