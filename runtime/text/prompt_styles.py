"""How a question is put: Re2 (read twice), chain of thought, plan-and-solve, few-shot, answer formats.

Pure functions from messages to messages; nothing here knows of a model. The template is that of Re2 (Xu et
al., arXiv 2309.06275), for base models as plain text and for chat models inside the user's turn:

    Q: {question}
    Read the question again: {question}
    {answer format}
    A: Let's think step by step.

Only the question is read again, never what it is about: where a text has a line `---`, all before the last
such line is context, put in front of the template once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flatlm.runtime.errors import UsageError
from flatlm.runtime.options import PromptOptions
from flatlm.runtime.text.prompt import Message

AGAIN = "Read the question again: "
OPENINGS = {  # prompt style: the first words of the answer
    "plain": "",
    "cot": "Let's think step by step.",  # Kojima et al., arXiv 2205.11916
    "ps": "Let's first understand the problem and devise a plan to solve the problem. "  # arXiv 2305.04091
    "Then, let's carry out the plan and solve the problem step by step.",
}
ANSWER_FORMATS = {  # kind of answer: the sentence that asks for it, as in Re2's published prompts
    "number": "Your final answer should be a single numerical number, in the form \\boxed{answer}, "
    "at the end of your response.",
    "choice": "Your answer should be in the form \\boxed{choice}, e.g. \\boxed{A}, \\boxed{B}, \\boxed{C}, "
    "\\boxed{D}. There is only one correct choice.",
    "yes_no": "Your answer should be \\boxed{yes} or \\boxed{no}, in the form \\boxed{answer}.",
}

_RULE = re.compile(r"^---[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Exemplar:
    """A question with its worked answer, shown before the one to be answered."""

    question: str
    answer: str


def ask(question: str, options: PromptOptions, answer_format: str = "") -> str:
    """The template around `question`, which is read `options.reads` times where `options.re2` is set."""
    reads = options.reads if options.re2 else 1
    lines = [f"Q: {question}", *[AGAIN + question] * (reads - 1)]
    if answer_format:
        lines.append(answer_format)
    return "\n".join([*lines, f"A: {OPENINGS[options.prompt_style]}".rstrip()])


def split_context(text: str) -> tuple[str, str]:
    """Context and question: what stands before and after the last line `---`; without one all is question."""
    rules = list(_RULE.finditer(text))
    if not rules:
        return "", text
    return text[: rules[-1].start()].strip("\n"), text[rules[-1].end() :].strip("\n")


def styled(messages: Sequence[Message], options: PromptOptions) -> list[dict[str, Any]]:
    """`messages` with the last one, the user's, put into the template; earlier turns stay as they are.

    With plain style and one reading all stay as they are. Raises UsageError where the last message is not a
    user's text.
    """
    copies = [dict(message) for message in messages]
    if options.prompt_style == "plain" and not (options.re2 and options.reads > 1):
        return copies
    last = copies[-1] if copies else {}
    if last.get("role") != "user" or not isinstance(last.get("content"), str):
        raise UsageError("--re2 and --prompt-style need a last message that is the user's text")
    context, question = split_context(last["content"])
    last["content"] = (context + "\n\n" if context else "") + ask(question, options)
    return copies


def few_shot(
    exemplars: Sequence[Exemplar], options: PromptOptions, answer_format: str = ""
) -> list[dict[str, Any]]:
    """`exemplars` as turns of user and assistant, in the same template: their questions are read again."""
    turns = []
    for shown in exemplars:
        turns.append({"role": "user", "content": ask(shown.question, options, answer_format)})
        turns.append({"role": "assistant", "content": shown.answer})
    return turns


def plain_text(messages: Sequence[Message]) -> str:
    """The messages for a base model: no roles; an answer follows its `A: …`, a blank line every answer."""
    parts = []
    for message in messages:
        content = str(message["content"])
        parts.append(f" {content}\n\n" if message["role"] == "assistant" else content)
        if message["role"] == "system":
            parts.append("\n\n")
    return "".join(parts)
