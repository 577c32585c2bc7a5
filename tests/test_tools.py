"""Calls of tools: as families write them, in whatever pieces they come, held to their schemas."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.runtime.errors import UsageError
from flatlm.runtime.generation.answer import Prompt
from flatlm.runtime.grammars import Grammar
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import SamplingOptions
from flatlm.runtime.text.guidance import Guidance
from flatlm.runtime.text.prompt import render
from flatlm.runtime.text.tokenizer import load_tokenizer
from flatlm.runtime.text.tools.arguments import rules_of
from flatlm.runtime.text.tools.deltas import CallDelta, Content, Reasoning, folded
from flatlm.runtime.text.tools.families import FAMILIES, HARMONY, HERMES, family_of
from flatlm.runtime.text.tools.held import TERMINALS, Speller
from flatlm.runtime.text.tools.put import Reading, reading_of, told
from flatlm.runtime.text.tools.request import readable, tooling_of
from tests.tiny_text import FakeBackend, ScriptedBackend, byte_level, write_folder

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "required": ["a", "b"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "say",
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": "string", "maxLength": 3}, "loud": {"type": "boolean"}},
                "required": ["text"],
                "additionalProperties": False,
            },
        },
    },
]
SCHEMAS = tooling_of(TOOLS).schemas
BY_NAME = {family.name: family for family in (*FAMILIES, HARMONY)}
ADD, SAY = ("add", {"a": 1, "b": -2}), ("say", {"text": 'a "b"', "loud": True})

WRITTEN = {  # family: what its models write for ADD and SAY, one after the other
    "hermes": [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": -2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "say", "arguments": {"text": "a \\"b\\"", "loud": true}}\n</tool_call>',
        '<tool_call>{"arguments": {"b": -2, "a": 1}, "name": "add"}</tool_call>'
        '<tool_call> {"name": "say", "arguments": "{\\"text\\": \\"a \\\\\\"b\\\\\\"\\", \\"loud\\": true}"}',
        '{"name": "add", "arguments": {"a": 1, "b": -2}}\n'
        '{"name": "say", "arguments": {"text": "a \\"b\\"", "loud": true}}',
    ],
    "qwen-tags": [
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n-2\n</parameter>\n"
        "</function>\n</tool_call>\n<tool_call>\n<function=say>\n<parameter=text>\n"
        'a "b"\n</parameter>\n<parameter=loud>True</parameter>\n</function>\n</tool_call>',
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": -2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "say", "arguments": {"text": "a \\"b\\"", "loud": true}}\n</tool_call>',
    ],
    "glm": [
        "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n"
        "<arg_value>-2</arg_value>\n</tool_call>\n<tool_call>say<arg_key>text</arg_key>"
        '<arg_value>a "b"</arg_value><arg_key>loud</arg_key><arg_value>true</arg_value></tool_call>'
    ],
    "nemotron": [
        '<TOOLCALL>[{"name": "add", "arguments": {"a": 1, "b": -2}}, '
        '{"name": "say", "arguments": {"text": "a \\"b\\"", "loud": true}}]</TOOLCALL>'
    ],
    "apriel": [
        '<tool_calls>[{"name": "add", "arguments": {"a": 1, "b": -2}}, '
        '{"name": "say", "arguments": {"text": "a \\"b\\"", "loud": true}}]</tool_calls>'
    ],
    "llama": [
        '{"name": "add", "parameters": {"a": 1, "b": -2}}'
        '{"name": "say", "parameters": {"text": "a \\"b\\"", "loud": true}}',
        '<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": -2}}'
        '<|python_tag|>{"type": "function", "name": "say", '
        '"parameters": {"text": "a \\"b\\"", "loud": true}}',
        '[{"name": "add", "parameters": {"a": 1, "b": -2}}, '
        '{"name": "say", "parameters": {"text": "a \\"b\\"", "loud": true}}]',
    ],
    "llama-python": ["[add(a=1, b=-2), say(text='a \"b\"', loud=True)]"],
    "lfm2": [
        "<|tool_call_start|>[add(a=1, b=-2), say(text='a \"b\"', loud=True)]<|tool_call_end|>",
        '<|tool_call_start|>[add(a=1, b=-2), say(text="a \\"b\\"", loud=true)]<|tool_call_end|>',
        '<|tool_call_start|>[{"name": "add", "arguments": {"a": 1, "b": -2}}, '
        '{"name": "say", "arguments": {"text": "a \\"b\\"", "loud": true}}]<|tool_call_end|>',
    ],
    "mistral": [
        '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1, "b": -2}, "id": "123456789"}, '
        '{"name": "say", "arguments": {"text": "a \\"b\\"", "loud": true}}]',
        '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": -2}}]'
        '[TOOL_CALLS] [{"name": "say", "arguments": {"text": "a \\"b\\"", "loud": true}}]',
    ],
    "mistral-named": [
        '[TOOL_CALLS]add[ARGS]{"a": 1, "b": -2}[TOOL_CALLS]say[CALL_ID]123456789[ARGS]'
        '{"text": "a \\"b\\"", "loud": true}',
    ],
    "phi": [
        '<|tool_call|>[{"name": "add", "arguments": {"a": 1, "b": -2}}, '
        '{"name": "say", "arguments": {"text": "a \\"b\\"", "loud": true}}]<|/tool_call|>'
    ],
    "granite": [
        '<|tool_call|>[{"name": "add", "arguments": {"a": 1, "b": -2}}, '
        '{"name": "say", "arguments": {"text": "a \\"b\\"", "loud": true}}]'
    ],
    "gemma": [
        "<|tool_call>call:add{a:1,b:-2}<tool_call|>"
        '<|tool_call>call:say{loud:true,text:<|"|>a "b"<|"|>}<tool_call|>'
    ],
    "function-gemma": [
        "<start_function_call>call:add{a:1,b:-2}<end_function_call>"
        '<start_function_call>call:say{text:<escape>a "b"<escape>,loud:true}<end_function_call>'
    ],
    "harmony": [
        '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1, "b": -2}<|end|>'
        "<|start|>assistant to=functions.say<|channel|>commentary json<|message|>"
        '{"text": "a \\"b\\"", "loud": true}'
    ],
}
EXAMPLES = [(name, text) for name, texts in WRITTEN.items() for text in texts]


def cut(text, places):
    """`text` in pieces."""
    ends = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(ends)]


def read(reading, pieces):
    reader, found = reading.reader(), []
    for piece in pieces:
        found += reader.push(piece)
    return [*found, *reader.finish()]


def parts(deltas):
    """Content, reasoning, calls as values."""
    message = folded(deltas)
    return message.content, message.reasoning, [(c.name, json.loads(c.arguments)) for c in message.tool_calls]


def test_all_families_have_examples():
    assert set(WRITTEN) == set(BY_NAME)


@pytest.mark.parametrize(("name", "text"), EXAMPLES)
@settings(max_examples=30)
@given(places=st.lists(st.integers(0, 400), max_size=30))
def test_calls_are_read_as_their_family_writes_them_however_they_come(name, text, places):
    found = read(Reading(BY_NAME[name], SCHEMAS), cut(text, places))
    assert parts(found) == ("", "", [ADD, SAY])
    firsts = [delta for delta in found if delta.id]
    assert [delta.index for delta in firsts] == [0, 1] and len({delta.id for delta in firsts}) == 2
    assert all(len(delta.id) == 9 and delta.id.isalnum() for delta in firsts)


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.opener], ids=lambda family: family.name)
@settings(max_examples=30)
@given(places=st.lists(st.integers(0, 400), max_size=30))
def test_text_and_thoughts_around_calls_are_told_apart(family, places):
    opened, ended = family.think
    text = f"{opened}\nlet me add\n{ended}\n\nI add.\n\n{WRITTEN[family.name][0]}\n"
    expected = ("I add.", "let me add", [ADD, SAY])
    assert parts(read(Reading(family, SCHEMAS), cut(text, places))) == expected
    begun = text.removeprefix(opened)
    assert parts(read(Reading(family, SCHEMAS, thinking=True), cut(begun, places))) == expected


@pytest.mark.parametrize("family", [*FAMILIES, HARMONY], ids=lambda family: family.name)
@pytest.mark.parametrize("schemas", [SCHEMAS, {}], ids=["tools", "no tools"])
@settings(max_examples=20)
@given(
    text=st.text("ab{[\"'<|>tool_cal (\n:", max_size=40),
    places=st.lists(st.integers(0, 400), max_size=10),
)
def test_text_that_is_no_call_is_given_as_it_is(family, schemas, text, places):
    assert parts(read(Reading(family, schemas), cut(text, places))) == (text, "", [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", 'Well: <tool_call>\n{"name": "add", "arguments": {"a": 1, }}\n</tool_call> so'),
        ("hermes", "<tool_call>\n<function>\n</tool_call>"),
        ("hermes", '<tool_call>\n{"name": "add", "arguments": {"a": 1'),
        ("hermes", '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "add", "arguments": [1]}\n</tool_call>'),
        ("hermes", "<tool_call>\n" + "[" * 5000 + "\n</tool_call>"),
        ("hermes", '{"name": "unknown", "arguments": {}}'),
        ("hermes", '{"name": "add"}'),
        ("llama", '{"name": "Bob", "parameters": {}}'),
        ("llama", '{"answer": 4} and more'),
        ("llama-python", "[1, 2] are numbers"),
        ("llama-python", "[add(1, 2)]"),
        ("llama-python", "[add(a=__import__('os'))]"),
        ("lfm2", "<|tool_call_start|>[add(**{})]x<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>[add(**{'a': 1})]<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>[add(a=1j, b={1, 2}, c=1e999)]<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>[add(a=" + "-" * 9000 + "1)]<|tool_call_end|>"),
        ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
        ("mistral", "[TOOL_CALLS] and no list"),
        ("mistral-named", "[TOOL_CALLS]add[ARGS]{oh}"),
        ("gemma", "<|tool_call>call add<tool_call|>"),
    ],
)
@settings(max_examples=10)
@given(places=st.lists(st.integers(0, 400), max_size=10))
def test_what_does_not_parse_is_text_and_nothing_of_it_is_lost(name, text, places):
    assert parts(read(Reading(BY_NAME[name], SCHEMAS), cut(text, places))) == (text, "", [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": "\\ud800é"}}</tool_call>'),
        ("lfm2", "<|tool_call_start|>[add(a='\\ud800é')]<|tool_call_end|>"),
    ],
)
def test_half_a_character_in_arguments_stays_an_escape(name, text):
    (call,) = folded(read(Reading(BY_NAME[name], SCHEMAS), [text])).tool_calls
    assert call.arguments == '{"a": "\\ud800\\u00e9"}' and call.arguments.encode()


def test_channels_of_harmony_are_thoughts_and_text():
    text = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4 < 5"
    for step in range(1, 12):
        pieces = [text[i : i + step] for i in range(0, len(text), step)]
        assert parts(read(Reading(HARMONY), pieces)) == ("4 < 5", "hm", [])
    broken = "<|channel|>commentary to=functions.add<|message|>{oh"
    assert parts(read(Reading(HARMONY), [broken])) == ("{oh", "", [])


@pytest.mark.parametrize(
    "family", [one for one in FAMILIES if one.form.style == "json"], ids=lambda family: family.name
)
@settings(max_examples=20)
@given(places=st.lists(st.integers(0, 400), max_size=60))
def test_what_a_grammar_vouches_for_comes_in_fragments_and_is_the_same(family, places):
    form = family.form
    calls = [(ADD[0], json.dumps(ADD[1])), (SAY[0], json.dumps(SAY[1]))]
    spelled = [form.head.replace("{name}", name) + arguments + form.foot for name, arguments in calls]
    if form.joint:
        text = form.lead + form.joint.join(spelled) + form.tail
    else:
        text = "\n".join(form.lead + one + form.tail for one in spelled)
    found = read(Reading(family, SCHEMAS, vouched=bool(family.opener)), cut(text, places))
    assert parts(found) == ("", "", [ADD, SAY])
    letters = read(Reading(family, SCHEMAS, vouched=True), list(text))
    fragments = [delta.arguments for delta in letters if isinstance(delta, CallDelta) and delta.arguments]
    assert "".join(fragments) == "".join(arguments for _, arguments in calls)
    assert len(fragments) > 20 or not family.opener


def test_a_vouched_call_that_is_cut_short_stays_as_far_as_it_came():
    found = read(
        Reading(HERMES, SCHEMAS, vouched=True), ['<tool_call>\n{"name": "add", "arguments": {"a": 1']
    )
    message = folded(found)
    assert (message.content, message.tool_calls[0].arguments) == ("", '{"a": 1')


def test_a_stream_says_what_is_certain_at_once():
    reader = Reading(HERMES, SCHEMAS).reader()
    assert reader.push("Hello") == [Content("Hello")]
    assert reader.push(" <to") == [] and reader.push("p>") == [Content(" <top>")]
    reader = Reading(HERMES, {}, thinking=True).reader()
    assert reader.push("hm") == [Reasoning("hm")]
    assert reader.push("</think>\n\n") == [] and reader.push("yes") == [Content("yes")]


# ---- requests


def test_functions_and_choices_are_read_as_clients_send_them():
    bare = [tool["function"] for tool in TOOLS]
    assert tooling_of(bare).tools == tooling_of(TOOLS).tools
    assert tooling_of(TOOLS, "none") is None and tooling_of([], "auto") is None and tooling_of(None) is None
    for choice in ("say", {"type": "function", "function": {"name": "say"}}, {"type": "tool", "name": "say"}):
        assert (tooling_of(TOOLS, choice).choice, list(tooling_of(TOOLS, choice).schemas)) == ("say", ["say"])
    assert tooling_of(TOOLS, "required").forced and not tooling_of(TOOLS).forced
    assert [tooling_of(TOOLS, c, p).several for c in ("auto", "required") for p in (None, True, False)] == [
        *(True, True, False),
        *(False, True, False),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((["add"],), "a tool is a function with a name"),
        (([{"name": ""}],), "a tool is a function with a name"),
        (([{"name": "a<b"}],), "cannot be called"),
        (([{"name": "a", "parameters": 3}],), "must be a JSON schema"),
        ((TOOLS + TOOLS,), "two have one name"),
        ((TOOLS, "multiply"), "tool_choice 'multiply'.*one of add, say"),
        ((TOOLS, {"function": 3}), "tool_choice"),
        ((None, "required"), "without tools"),
        (([{"name": str(i)} for i in range(129)],), "at most 128"),
    ],
)
def test_what_is_no_tool_or_choice_is_an_error(given, message):
    with pytest.raises(UsageError, match=message) as error:
        tooling_of(*given)
    assert error.value.param in ("tools", "tool_choice")


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 - 2?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "abcdefghi",
                "type": "function",
                "function": {"name": "add", "arguments": '{"a": 1, "b": -2}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "abcdefghi", "content": "-1"},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": "twice"},
    {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "text", "text": "then?"}]},
]
QWEN = (Path(__file__).parent / "templates" / "qwen2.5-coder-0.5b.jinja").read_text(encoding="utf-8")
SMOLLM = (Path(__file__).parent / "templates" / "smollm2.jinja").read_text(encoding="utf-8")


def test_calls_and_results_are_rendered_as_transformers_renders_them():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level())
    messages = [readable(message) for message in CONVERSATION]
    expected = theirs.apply_chat_template(
        messages, tools=TOOLS, chat_template=QWEN, add_generation_prompt=True, tokenize=False
    )
    put, tools = told(QWEN, messages, tooling_of(TOOLS))
    assert render(QWEN, put, tools=tools) == expected
    assert '{"name": "add", "arguments": {"a": 1, "b": -2}}\n</tool_call>' in expected
    assert (
        "<tool_response>\n-1\n</tool_response>\n<tool_response>\ntwice" in expected
        and "and\nthen?" in expected
    )


def test_a_template_without_tools_is_told_of_them_in_the_words_that_qwens_uses():
    messages = [readable(message) for message in CONVERSATION]
    put, tools = told(SMOLLM, messages, tooling_of(TOOLS))
    assert tools is None
    theirs = render(QWEN, messages, tools=TOOLS)
    assert render(SMOLLM, put) == theirs.replace(
        "<|im_start|>assistant\n<tool_call>", "<|im_start|>assistant\n<tool_call>"
    )
    plain = [{"role": "user", "content": "x"}]
    assert told(SMOLLM, plain, None) == (plain, None)
    assert [m["role"] for m in told(SMOLLM, messages, None)[0]] == [
        "system",
        "user",
        "assistant",
        "user",
        "user",
    ]


def test_arguments_of_earlier_calls_that_are_no_json_stay_text():
    call = {"function": {"name": "add", "arguments": "{oh"}}
    message = readable({"role": "assistant", "content": "x", "tool_calls": [call]})
    assert message["tool_calls"][0]["function"]["arguments"] == "{oh"
    assert "{oh" in render(QWEN, [{"role": "user", "content": "x"}, message])
    put, _ = told(SMOLLM, [message], None)
    assert '"arguments": {oh}' in put[0]["content"]
    with pytest.raises(UsageError, match="a call is a function with a name"):
        readable({"role": "assistant", "tool_calls": [{"function": {}}]})
    with pytest.raises(UsageError, match="a part of a message must be text"):
        readable({"role": "user", "content": [{"type": "image_url"}]})


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (None, "hermes"),
        (SMOLLM, "hermes"),
        (QWEN, "hermes"),
        ("{{ tools }}<|tool_call_start|>", "lfm2"),
        ("{{ tools }}[TOOL_CALLS]", "mistral"),
        ("{{ tools }}[TOOL_CALLS][ARGS]", "mistral-named"),
        ('{{ tools }}{"name": function name, "parameters": dictionary', "llama"),
        ("{{ tools }}<|channel|><|message|>", "harmony"),
        ("{{ xml_tools }}[TOOL_CALLS]", "hermes"),
        ("{{ tools }}<tool_call>\n<function=example>", "qwen-tags"),
    ],
)
def test_a_template_shows_its_family(template, name):
    assert family_of(template).name == name


# ---- answers of a model

MARKS = ["<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call|>"]
MARKS += [
    "<|channel>",
    "<channel|>",
    '<|"|>',
    "<|tool_call>",
    "<tool_call|>",
    "<escape>",
    "<|/tool_call|>",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    *HARMONY.special,
]


@pytest.fixture(params=["marks are tokens", "marks are text"])
def tokenizer(request, tmp_path):
    hf = byte_level()
    if request.param == "marks are tokens":
        hf.add_special_tokens(MARKS)
    return load_tokenizer(write_folder(tmp_path, hf, config={"eos_token": "<|stop|>"}))  # <|end|> is a mark


def template_of(family):
    marks = " ".join(family.marks[:1] if family.name != "harmony" else ("<|channel|>", "<|message|>"))
    return (
        "{{ tools }}{# "
        + marks
        + " "
        + family.think[0]
        + " #}{% for m in messages %}{{ m.content }}{% endfor %}"
    )


FORMED = [*FAMILIES, HARMONY]


@pytest.mark.parametrize("family", FORMED, ids=lambda family: family.name)
@pytest.mark.parametrize("choice", ["required", "say"])
def test_a_call_that_must_be_is_one_and_fits_its_schema(tokenizer, family, choice):
    pytest.importorskip("llguidance")
    llm = LLM.of(FakeBackend(vocab=300, context=700), tokenizer, template_of(family))
    whole, marks = 0, tokenizer.hf.get_added_tokens_decoder().values()
    ends = {mark.content for mark in marks if mark.content in family.form.quote + family.think[1]}
    for seed in range(8):
        if whole:
            break
        answer = llm.chat(
            [{"role": "user", "content": "x"}],
            tools=TOOLS,
            tool_choice=choice,
            temp=1.0,
            top_k=3,
            seed=seed,
            n=200,
            logit_bias=dict.fromkeys(ends, 3.0),  # of texts and thoughts
        )
        if answer.finish_reason == "length":
            continue
        whole += 1
        assert len(answer.tool_calls) == 1 and answer.content == ""
        call = answer.tool_calls[0]
        arguments = json.loads(call.arguments)
        assert call.name in (("add", "say") if choice == "required" else ("say",))
        if call.name == "add":
            assert set(arguments) == {"a", "b"} and all(type(value) is int for value in arguments.values())
        else:
            assert {"text"} <= set(arguments) <= {"text", "loud"}
            assert type(arguments["text"]) is str and type(arguments.get("loud", True)) is bool
            assert family.form.style == "gemma" or len(arguments["text"]) <= 3
    assert whole or (family.form.style == "gemma" and not ends)  # the end of a text is five letters there


@pytest.mark.parametrize("family", [f for f in FORMED if f.opener and f.among_text], ids=lambda f: f.name)
def test_a_call_that_may_be_is_held_to_its_schema_from_its_opener_on(tokenizer, family):
    pytest.importorskip("llguidance")
    template = template_of(family)
    reading, grammar = reading_of(template, "x", tooling_of(TOOLS), tokenizer)
    assert reading.vouched and grammar is not None
    text = "I add: " + family.opener
    script = tokenizer.encode(text, special=False)
    llm = LLM.of(ScriptedBackend(script, vocab=300, context=700), tokenizer, template)
    answer = llm.chat(
        [{"role": "user", "content": "x"}], tools=TOOLS, parallel_tool_calls=False, n=300
    )  # then any
    assert answer.text.startswith(text) and answer.content.startswith("I add:")
    assert answer.tool_calls and answer.tool_calls[0].name in ("add", "say")
    free = llm.chat([{"role": "user", "content": "x"}], tools=TOOLS, n=5, regex="no+")
    assert free.text.startswith("no")  # the form that was asked for counts


def test_without_llguidance_calls_are_read_all_the_same(tokenizer, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    text = 'x <tool_call>\n{"name": "add", "arguments": {"a": 1, "b": -2}}\n</tool_call>'
    script = [*tokenizer.encode(text, special=False), 2]
    llm = LLM.of(ScriptedBackend(script, context=2000), tokenizer, QWEN)
    stream = llm.stream_chat([{"role": "user", "content": "x"}], tools=TOOLS)
    answer = stream.run()
    assert (answer.text, answer.content) == (text, "x")
    assert [(call.name, json.loads(call.arguments)) for call in answer.tool_calls] == [ADD]


def test_an_answer_without_tools_or_thoughts_is_its_text(tokenizer):
    llm = LLM.of(FakeBackend(context=700), tokenizer, SMOLLM)
    prompt = llm.chat_prompt([{"role": "user", "content": "x"}])
    assert prompt == Prompt(prompt.ids, SamplingOptions())
    answer = llm.chat([{"role": "user", "content": "x"}], n=5)
    assert (answer.content, answer.reasoning, answer.tool_calls) == (answer.text, "", ())


SOME = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "who": {"type": "string", "enum": ["me", "you"]},
        "at": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "t": {"type": "string"}},
            "required": ["x"],
        },
        "all": {"type": "array", "items": {"type": "boolean"}},
        "ref": {"$ref": "#/$defs/one"},
    },
    "required": ["who"],
    "$defs": {"one": {"const": 7}},
}
FREE = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "string"}}}
NONE = {"type": "object"}
PAIRS = "<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>\n"
TAGS = "<parameter={}>\n{}\n</parameter>\n"


@pytest.mark.parametrize(
    ("name", "schema", "good", "bad"),
    [
        (
            "lfm2",
            SOME,
            ['who="me"', 'who="you", n=3, at={"x": 1.5}, all=[true], ref=7', 'who="me", ref=7'],
            ["who='me'", "n=3", 'who="him"', 'who="me", ref=8', 'who="me",', 'who="me", n=x'],
        ),
        ("lfm2", FREE, ["", "a=true", 'a=false, b="x"', 'b="x"'], [", a=true", "a=true,", "c=1"]),
        ("lfm2", NONE, [""], ["a=1"]),
        (
            "qwen-tags",
            SOME,
            [
                TAGS.format("who", "me"),
                TAGS.format("who", "you") + TAGS.format("n", "3") + TAGS.format("ref", "7"),
            ],
            ["", TAGS.format("who", "him"), TAGS.format("who", '"me"'), TAGS.format("n", "3")],
        ),
        (
            "qwen-tags",
            FREE,
            ["", TAGS.format("b", "two\nlines"), TAGS.format("a", "true")],
            [TAGS.format("a", "x")],
        ),
        (
            "gemma",
            SOME,
            [
                '{who:<|"|>me<|"|>}',
                '{who:<|"|>you<|"|>,n:3,at:{x:1.5,t:<|"|>a "b"<|"|>},all:[true,false]}',
                '{who:<|"|>me<|"|>,all:[]}',
            ],
            ["{}", '{who:<|"|>him<|"|>}', '{who:"me"}', '{who:<|"|>me<|"|>,at:{t:<|"|>a<|"|>}}'],
        ),
        (
            "glm",
            SOME,
            [PAIRS.format("who", "me"), PAIRS.format("who", "you") + PAIRS.format("n", "3")],
            ["", PAIRS.format("who", "him"), PAIRS.format("n", "3")],
        ),
        ("gemma", FREE, ["{}", "{a:true}", '{b:<|"|><|"|>}'], ["{a:1}", "{,a:true}"]),
    ],
)
def test_arguments_in_the_ways_of_families_keep_to_their_schema(tokenizer, name, schema, good, bad):
    pytest.importorskip("llguidance")
    added = {token.content: number for number, token in tokenizer.hf.get_added_tokens_decoder().items()}
    form = BY_NAME[name].form
    rules = rules_of(form, 0, schema, Speller({mark: added[mark] for mark in MARKS if mark in added}))
    grammar = Grammar("grammar", "\n".join(["start: arguments_0", *rules, *TERMINALS]))
    for text in [*good, *bad]:
        ids = [*tokenizer.encode(text, special=False), 2]
        constraint = Guidance(tokenizer, 300).constraint(grammar, 1)
        consumed = constraint.takes([9], ids) == len(ids)
        assert consumed == (text in good), text
