"""text.prompt_styles: the published templates, word for word, and what is read again and what is not."""

from __future__ import annotations

import pytest

from flatlm.runtime.errors import UsageError
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import PromptOptions, from_json
from flatlm.runtime.text.prompt_styles import (
    ANSWER_FORMATS,
    Exemplar,
    ask,
    few_shot,
    plain_text,
    split_context,
    styled,
)
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.tiny_text import CHATML, FakeBackend, byte_level, write_folder

RE2 = PromptOptions(re2=True)
COT_RE2 = PromptOptions("cot", re2=True)
QUESTION = "How many legs have 3 cats?"


def user(text):
    return [{"role": "user", "content": text}]


def test_re2_with_chain_of_thought_is_the_published_template():
    assert ask(QUESTION, COT_RE2, ANSWER_FORMATS["number"]) == (
        "Q: How many legs have 3 cats?\n"
        "Read the question again: How many legs have 3 cats?\n"
        "Your final answer should be a single numerical number, in the form \\boxed{answer}, "
        "at the end of your response.\n"
        "A: Let's think step by step."
    )


def test_without_chain_of_thought_the_answer_opens_bare():
    assert ask(QUESTION, RE2) == f"Q: {QUESTION}\nRead the question again: {QUESTION}\nA:"


def test_without_re2_the_question_stands_once():
    assert ask(QUESTION, PromptOptions("cot")) == f"Q: {QUESTION}\nA: Let's think step by step."


@pytest.mark.parametrize("reads", [1, 2, 3, 4, 5])
def test_the_question_is_read_as_often_as_asked(reads):
    text = ask(QUESTION, PromptOptions(re2=True, reads=reads))
    assert (text.count(QUESTION), text.count("Read the question again: ")) == (reads, reads - 1)


def test_plan_and_solve_opens_with_its_plan():
    assert ask(QUESTION, PromptOptions("ps", re2=True)).endswith(
        "\nA: Let's first understand the problem and devise a plan to solve the problem. Then, let's carry "
        "out the plan and solve the problem step by step."
    )


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("choice", "e.g. \\boxed{A}, \\boxed{B}, \\boxed{C}, \\boxed{D}. There is only one"),
        ("yes_no", "\\boxed{yes} or \\boxed{no}"),
    ],
)
def test_the_answer_format_stands_before_the_answer(kind, part):
    *_, form, answer = ask(QUESTION, COT_RE2, ANSWER_FORMATS[kind]).split("\n")
    assert part in form and answer.startswith("A:")


def test_examples_are_read_again_too():
    turns = few_shot([Exemplar("1 + 1?", "It is \\boxed{2}.")], COT_RE2, "Form.")
    assert turns == [
        {
            "role": "user",
            "content": "Q: 1 + 1?\nRead the question again: 1 + 1?\nForm.\nA: Let's think step by step.",
        },
        {"role": "assistant", "content": "It is \\boxed{2}."},
    ]


def test_only_the_last_turn_is_put_and_the_given_messages_stay():
    given = [
        {"role": "system", "content": "s"},
        *user("a"),
        {"role": "assistant", "content": "b"},
        *user("c"),
    ]
    before = [dict(message) for message in given]
    put = styled(given, RE2)
    assert given == before
    assert put[:3] == given[:3]
    assert put[3] == {"role": "user", "content": "Q: c\nRead the question again: c\nA:"}


@pytest.mark.parametrize("options", [PromptOptions(), PromptOptions(re2=True, reads=1)])
def test_nothing_chosen_changes_nothing(options):
    assert styled(user("a\n---\nb"), options) == user("a\n---\nb")
    assert styled([], options) == []


def test_the_context_is_read_once():
    (put,) = styled(user("A long text.\n\n---\nWho wrote it?"), RE2)
    assert put["content"] == ("A long text.\n\nQ: Who wrote it?\nRead the question again: Who wrote it?\nA:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("just a question", ("", "just a question")),
        ("a\n---\nb\n---  \nc", ("a\n---\nb", "c")),
        ("---\nq", ("", "q")),
        ("a --- b", ("", "a --- b")),
        ("| a |\n|---|\n| b |", ("", "| a |\n|---|\n| b |")),
    ],
)
def test_context_ends_at_the_last_line_of_three_dashes(text, expected):
    assert split_context(text) == expected


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "assistant", "content": "x"}], user([{"type": "text", "text": "x"}]), [{"role": "user"}]],
)
def test_a_style_needs_the_users_text_at_the_end(messages):
    with pytest.raises(UsageError, match="the user's text"):
        styled(messages, RE2)


def test_plain_text_has_no_roles():
    shown = few_shot([Exemplar("1 + 1?", "\\boxed{2}"), Exemplar("2 + 2?", "\\boxed{4}")], PromptOptions())
    messages = [{"role": "system", "content": "Sums."}, *shown, *user(ask("3 + 3?", PromptOptions()))]
    assert plain_text(messages) == (
        "Sums.\n\nQ: 1 + 1?\nA: \\boxed{2}\n\nQ: 2 + 2?\nA: \\boxed{4}\n\nQ: 3 + 3?\nA:"
    )


@pytest.mark.parametrize("values", [{"reads": 0}, {"reads": 6}, {"prompt_style": "tot"}, {"re2": "yes"}])
def test_options_outside_their_range_are_refused(values):
    with pytest.raises(UsageError):
        from_json(values, PromptOptions)


def test_the_python_interface_takes_the_same_options(tmp_path):
    tokenizer = load_tokenizer(write_folder(tmp_path, byte_level()))
    llm = LLM.of(FakeBackend(context=512), tokenizer, CHATML)
    stream = llm.stream_chat(user("a?"), n=1, re2=True, reads=3, prompt_style="cot")
    expected = "Q: a?" + "\nRead the question again: a?" * 2 + "\nA: Let's think step by step."
    sent = tokenizer.decode(stream.prompt_ids, skip_special=False)
    assert sent == f"<|start|>user\n{expected}<|end|>\n<|start|>assistant\n"
