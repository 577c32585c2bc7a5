"""What a model is calibrated on: half of the windows plain text, half conversations in its own chat template.

A static scale must have seen what the model will read. The first tokens of a sequence and the template's
special
tokens drive some channels several times further than running text does: calibrated on text alone, SmolLM2's
`down`
inputs in a chat reach 2.8 times their limit and its answers break.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from flatlm.export.calibrate import WINDOW
from flatlm.runtime.errors import TemplateError, UsageError
from flatlm.runtime.text.prompt import render
from flatlm.runtime.text.tokenizer import Tokenizer

QUESTION = 240  # characters of a user's message: questions are short, answers long


def passages(tokenizer: Tokenizer, template: str | None, text: str, count: int) -> np.ndarray:
    """Token ids [count · 512]: `count` windows, every second one a conversation if there is a template.

    A text too short for that many gives fewer. UsageError below 16 tokens.
    """
    plain = _windows(tokenizer.encode(text, special=False))
    chats = list(_conversations(tokenizer, template, text, count // 2)) if template else []
    spread = np.linspace(0, len(plain) - 1, min(count - len(chats), len(plain))).round().astype(int)
    chosen = [plain[i] for i in spread] + chats
    if sum(map(len, chosen)) < 16:
        raise UsageError("the calibration text has fewer than 16 tokens; 8,000 are good")
    return np.concatenate([window for window in chosen if len(window) == len(chosen[0])]).astype(np.int64)


def _windows(ids: list[int]) -> list[np.ndarray]:
    """Whole windows; a text shorter than one gives one short window."""
    if len(ids) < WINDOW:
        return [np.array(ids, np.int64)]
    whole = len(ids) // WINDOW
    return list(np.array(ids[: whole * WINDOW], np.int64).reshape(whole, WINDOW))


def _conversations(tokenizer: Tokenizer, template: str, text: str, count: int) -> Iterator[np.ndarray]:
    """Windows that begin where a conversation begins; messages are the text's paragraphs in turn."""
    paragraphs = [line.strip() for line in text.splitlines() if len(line.strip()) > 40]
    if len(paragraphs) < 2:
        return
    for i in range(count):
        messages: list[dict[str, str]] = []
        at = i * len(paragraphs) // count
        ids: list[int] = []
        while len(ids) < WINDOW:
            question, answer = (paragraphs[(at + j) % len(paragraphs)] for j in (0, 1))
            messages += [
                {"role": "user", "content": question[:QUESTION]},
                {"role": "assistant", "content": answer},
            ]
            try:
                rendered = render(template, messages, special=tokenizer.special, add_generation_prompt=False)
            except TemplateError:  # a template that wants other roles: text must do
                return
            ids, at = tokenizer.encode(rendered), at + 2
        yield np.array(ids[:WINDOW], np.int64)
