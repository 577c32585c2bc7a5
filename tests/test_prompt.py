"""flatlm.runtime.text.prompt: chat templates as transformers renders them, in a sandbox."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest

from flatlm.runtime.errors import BackendError, TemplateError, UsageError
from flatlm.runtime.options import PromptOptions
from flatlm.runtime.text import prompt
from flatlm.runtime.text.prompt import load_template, render, without_template
from flatlm.runtime.text.prompt_styles import styled
from tests.tiny_text import CHATML, byte_level, write_folder

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is <b>2 & 2</b>?"},
    {"role": "assistant", "content": "  four  "},
    {"role": "user", "content": "naïve 漢字\nand more"},
]
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Add « two »", "parameters": {"a": 1}}}
]
SPECIAL = {"bos_token": "<|start|>", "eos_token": "<|end|>"}

TEMPLATES = {
    "chatml": CHATML,
    "llama2": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
        "{% set first = messages[0]['content'] %}{% else %}"
        "{% set rest = messages %}{% set first = '' %}{% endif %}"
        "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m['role'] == 'user' %}[INST] {{ first if loop.first }}{{ m['content'].strip() }} [/INST]"
        "{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    "blocks on their own lines": (
        "{%- if tools %}\n    {{- tools | tojson }}\n{%- endif %}\n"
        "{% for message in messages %}\n    {% if loop.first %}\n"
        "first:\n    {% endif %}\n    {# a comment #}\n"
        "{{ message.role }}: {{ message.content }}\n{% endfor %}\n"
        "{{ unknown_token }}{% if missing is not defined %}none{% endif %}"
    ),
    "filters": (
        "{{ tools | tojson(indent=2) }}{{ messages | map(attribute='role') | join(',') }}"
        "{{ messages | tojson(ensure_ascii=True, sort_keys=True) }}"
        "{{ messages | selectattr('role', 'equalto', 'user') "
        "| list | length }}{{ messages[0].content | upper | replace('BE', 'be') }}"
    ),
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
        "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}"
    ),
    "namespace and macro": (
        "{% set ns = namespace(count=0, last='') %}"
        "{% macro show(m) %}<{{ m.role }}>{{ caller() if caller }}{% endmacro %}"
        "{% for m in messages %}{% set ns.count = ns.count + 1 %}{% set ns.last = m.role %}"
        "{{ show(m) }}{% endfor %}"
        "{{ ns.count }}{{ ns.last }}{{ dict(a=1)['a'] }}{{ dict.fromkeys(['x'], 1) | tojson }}"
    ),
    "generation tag": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "date": "{{ strftime_now('%Y') }}{% if strftime_now is defined %}!{% endif %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("ask", [True, False], ids=["ask", "tell"])
def test_templates_render_as_in_transformers(name, tools, ask):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), **SPECIAL)
    expected = theirs.apply_chat_template(
        CONVERSATION, tools=tools, chat_template=TEMPLATES[name], add_generation_prompt=ask, tokenize=False
    )
    actual = render(TEMPLATES[name], CONVERSATION, special=SPECIAL, tools=tools, add_generation_prompt=ask)
    assert actual == expected


PUBLISHED = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
CONVERSATIONS = {
    "one turn": [{"role": "user", "content": "hi"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
    "several turns": [
        *CONVERSATION,
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "?"},
    ],
    "system later": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
    "empty": [{"role": "system", "content": ""}, {"role": "user", "content": ""}],
    "answered": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    "spaces": [{"role": "user", "content": "  a\n\n\tb \n"}],
    "unicode": [{"role": "user", "content": "naïve 漢字 🙂🇫🇷 e\u0301 \u202e \u2028 \x00"}],
    "markup": [{"role": "user", "content": "<|im_end|> {{ 7*7 }} {% raw %} <b>&amp;</b> 'x' \"y\" \\n"}],
    "Re2": styled([{"role": "user", "content": "a\n---\nHow many?"}], PromptOptions("cot", True)),
}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("ask", [True, False], ids=["ask", "tell"])
def test_the_models_templates_render_as_in_transformers(path, conversation, ask):
    transformers = pytest.importorskip("transformers")
    template, messages = path.read_text(encoding="utf-8"), CONVERSATIONS[conversation]
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), **SPECIAL)
    expected = theirs.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=ask, tokenize=False
    )
    assert render(template, messages, special=SPECIAL, add_generation_prompt=ask) == expected


def test_all_templates_of_supported_models_are_tested():
    assert [path.stem for path in PUBLISHED] == ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "smollm2"]


def test_chatml_renders_as_written_down():
    expected = "<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    assert render(CHATML, [{"role": "user", "content": "hi"}]) == expected


def test_the_refusal_of_a_template_is_passed_on():
    with pytest.raises(TemplateError, match="roles must alternate"):
        render(TEMPLATES["llama2"], CONVERSATION[1:2] * 2)


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ messages", "{% for m in messages %}", "{% include 'x' %}"]
)
def test_a_template_that_cannot_be_read_is_an_error(template):
    with pytest.raises(TemplateError, match="chat template"):
        render(template, CONVERSATION)


@pytest.mark.parametrize("template", ["{{ messages[9].content.x }}", "{{ 1 / 0 }}", "{{ messages + 1 }}"])
def test_a_template_that_fails_is_an_error_with_its_reason(template):
    with pytest.raises(TemplateError, match=r"failed: .+"):
        render(template, CONVERSATION)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['__builtins__'] }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__call__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ ('{0.__class__}').format(messages) }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ '' | attr('__class__') | attr('__mro__') }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ],
)
def test_the_sandbox_holds(template):
    try:
        rendered = render(template, CONVERSATION)
    except TemplateError:
        return
    assert rendered in ("", "[Undefined, Undefined, Undefined, Undefined]")


def test_a_template_cannot_change_the_callers_messages():
    messages = [{"role": "user", "content": ["a"]}]
    with pytest.raises(TemplateError):
        render("{{ messages[0].content.append('b') }}", messages)
    assert messages == [{"role": "user", "content": ["a"]}]


def test_objects_never_reach_a_template():
    with pytest.raises(UsageError, match="plain JSON"):
        render(CHATML, [{"role": "user", "content": open}])


@pytest.mark.parametrize("messages", [["hi"], [{"content": "x"}], [{"role": 3, "content": "x"}]])
def test_messages_without_a_role_are_wrong_use(messages):
    with pytest.raises(UsageError, match="role"):
        render(CHATML, messages)


def test_a_missing_jinja_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without_jinja(name, *args, **kwargs):
        if name.startswith("jinja2"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    prompt._environment.cache_clear()
    prompt._compile.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without_jinja)
    with pytest.raises(BackendError, match=r"flatlm\["):
        render(CHATML, CONVERSATION)


def test_the_file_comes_before_the_configuration(tmp_path):
    write_folder(tmp_path, byte_level(), {"chat_template": "from the configuration"})
    assert load_template(tmp_path) == "from the configuration"
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert load_template(tmp_path) == "from the file"


def test_of_several_templates_the_default_is_taken(tmp_path):
    several = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    assert load_template(write_folder(tmp_path, byte_level(), {"chat_template": several})) == "b"


def test_a_model_without_a_template_has_none(tmp_path):
    assert load_template(write_folder(tmp_path, byte_level())) is None


def test_a_template_that_is_no_text_is_an_error(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(TemplateError, match="chat_template"):
        load_template(tmp_path)


def test_without_a_template_one_message_is_its_text_and_more_are_named():
    assert without_template(CONVERSATION[:1]) == "Be brief."
    assert without_template(CONVERSATION[:2]) == "system: Be brief.\nuser: What is <b>2 & 2</b>?\nassistant:"
