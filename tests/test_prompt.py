"""flatlm.runtime.text.prompt: chat templates as transformers renders them, in a sandbox."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest

from flatlm.runtime.errors import BackendError, ContextError, TemplateError, UsageError
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


GREEDY = {
    "steps": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "steps of macros":
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "steps of a recursive loop": (
        "{% for a in [[1], [2]] recursive %}{% for i in range(90000) %}{{ loop([[1]]) if 0 }}{% endfor %}"
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}{% endfor %}"
    ),
    "repeating": "{{ 'a' * 10**10 }}",
    "repeating from the left": "{{ (10**10) * 'a' }}",
    "a list": "{{ ([0] * 10**9) | length }}",
    "doubling":
        "{% set n = namespace(s='aa') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling by ~":
        "{% set n = namespace(s='aa') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling by a block": (
        "{% set n = namespace(s='aa') %}"
        "{% for i in range(99) %}{% set t %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = t %}{% endfor %}"
    ),
    "lists in lists": (
        "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
        "{{ n.s }}"
    ),
    "lists as JSON": (
        "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
        "{{ n.s | tojson }}"
    ),
    "a power": "{{ 10 ** (10 ** 8) }}",
    "a product": "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "a field": "{{ '%9999999999d' % 1 }}",
    "a field by number": "{{ '%*d' % (10**10, 1) }}",
    "a filter's field": "{{ '%9999999999d' | format(1) }}",
    "format": "{{ '{:>9999999999}'.format('a') }}",
    "format in format": "{{ '{:>{}}'.format('a', 10**10) }}",
    "format_map": "{{ '{a:>9999999999}'.format_map({'a': 1}) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "a method by filter": "{{ ('a' | attr('center'))(10**10) }}",
    "expandtabs": "{{ '\t\t'.expandtabs(10**10) }}",
    "join": "{{ ('a' * 10**6).join('b' * 10**6) }}",
    "the filter join": "{{ range(99999) | join('a' * 10**6) }}",
    "the filter join of attributes": "{{ ([{'a': 'a' * 10**6}] * 10**5) | join(attribute='a') }}",
    "replace": "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "the filter replace": "{{ ('a' * 10**6) | replace('a', 'b' * 10**6) }}",
    "translate": "{{ ('a' * 10**6).translate({97: 'b' * 10**6}) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "center, named": "{{ 'a' | center(width=10**10) }}",
    "center by map": "{{ ['a'] | map('center', 10**10) | list }}",
    "indent": "{{ ('\n' * 10**6) | indent(10**4) }}",
    "indent by text": "{{ ('a\n' * 10**6) | indent('b' * 10**6) }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "JSON": "{{ [1] | tojson(indent=10**10) }}",
    "sum": "{{ ([[1] * 10**6] * 10**6) | sum(start=[]) }}",
    "output": "{% for i in range(99) %}{{ 'a' * 10**6 }}{% endfor %}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "texts kept": (
        "{% set n = namespace(s=[]) %}"
        "{% for i in range(9999) %}{% set n.s = n.s + ['a' * (10**6 + i)] %}{% endfor %}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_a_template_that_wants_too_much_is_refused_before_it_has_it(name, monkeypatch):
    monkeypatch.setattr("flatlm.runtime.text.limits.MOST_STEPS", 20_000)
    monkeypatch.setattr("flatlm.runtime.text.limits.MOST_VALUES", 100_000)
    monkeypatch.setattr("flatlm.runtime.text.limits.MOST_MADE", 2**25)
    with pytest.raises(TemplateError, match="chat template") as refusal:
        render(GREEDY[name], CONVERSATION)
    assert len(str(refusal.value)) < 1000


def test_a_template_has_its_time(monkeypatch):
    monkeypatch.setattr("flatlm.runtime.text.limits.MOST_SECONDS", 0.0)
    assert render("{% for m in messages %}{{ m.role[0] }}{% endfor %}", CONVERSATION) == "suau"
    with pytest.raises(TemplateError, match="seconds"):
        render("{% for i in range(9999) %}{% endfor %}", CONVERSATION)


def test_each_rendering_has_limits_of_its_own(monkeypatch):
    monkeypatch.setattr("flatlm.runtime.text.limits.MOST_STEPS", 1000)
    half = "{% for i in range(60) %}{% for j in range(10) %}{% endfor %}{% endfor %}done"
    assert [render(half, CONVERSATION) for _ in range(2)] == ["done"] * 2


def test_a_template_may_be_as_long_as_published_ones_and_more():
    with pytest.raises(TemplateError, match="1048576 characters"):
        render("a" * (prompt.MOST_TEMPLATE + 1), CONVERSATION)


def test_messages_that_no_context_holds_are_refused_before_they_are_rendered():
    with pytest.raises(ContextError, match="no context holds"):
        render(CHATML, [{"role": "user", "content": "a" * 10**7}])


def test_a_long_conversation_is_within_all_limits():
    turns = [{"role": role, "content": "word " * 400} for role in ("user", "assistant") * 1000]
    assert len(render(CHATML, turns)) > 4_000_000


def test_a_refusal_is_not_longer_than_can_be_read():
    with pytest.raises(TemplateError) as refusal:
        render("{{ raise_exception('x' * 10**6) }}", CONVERSATION)
    assert len(str(refusal.value)) < 700


LOOPS = {
    "length":
        "{% for m in messages %}{{ loop.length }}{{ loop.revindex }}{{ loop.last }}{% endfor %}",
    "neighbours": "{% for m in messages %}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}",
    "a condition":
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{% endfor %}",
    "else": "{% for m in [] %}x{% else %}none{% endfor %}{% for m in missing %}x{% endfor %}",
    "of a dict": "{% for k, v in messages[0].items() %}{{ k }}={{ v }}{% endfor %}",
    "of its keys": "{% for k in messages[0] %}{{ k }}{% endfor %}",
    "recursive": "{% for a in [[1, [2, [3]]]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}",
    "changed":
        "{% for m in messages %}{{ loop.changed(m.role) }}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "concatenation": "{{ 1 ~ none ~ missing ~ [1, 'a'] ~ ('<b>' | e) }}{{ [1, '<', none] | join('&') }}",
    "methods": "{{ ','.join(['a', 'b']) }}{{ 'aXa'.replace('X', '-') }}{{ '{:>4}{}'.format(1, 10**9) }}",
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_what_is_counted_is_what_it_was(name):
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    expected = ImmutableSandboxedEnvironment().from_string(LOOPS[name]).render(messages=CONVERSATION)
    assert render(LOOPS[name], CONVERSATION) == expected


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
