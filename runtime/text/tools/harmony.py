"""gpt-oss's answers: messages in channels, of which one is said, one is thought, and calls have recipients.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…
    <|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>

The prompt ends with <|start|>assistant, and the token that ends the answer is not seen.
"""

from __future__ import annotations

import json
import re

from flatlm.runtime.text.stop_text import overlap
from flatlm.runtime.text.tools.deltas import Content, Delta, Reasoning
from flatlm.runtime.text.tools.families import HARMONY
from flatlm.runtime.text.tools.reader import Calls
from flatlm.runtime.text.tools.written import Malformed, as_json

BEGIN, ENDS = "<|message|>", ("<|end|>", "<|call|>", "<|return|>", "<|start|>")


class HarmonyReader:
    """A `Reader` of channels. A call is given when it is complete and parses; else it is text."""

    def __init__(self) -> None:
        self._calls = Calls()
        self._header: str | None = ""  # of a message; None within one
        self._kind = ""  # of the message: final, analysis …; that of a call is none
        self._name, self._body = "", ""  # of a call
        self._held = ""

    def push(self, piece: str) -> list[Delta]:
        """See Reader."""
        found: list[Delta] = []
        text: str = self._held + piece
        self._held = ""
        while text:
            text = self._in_header(text, found) if self._header is not None else self._in_message(text, found)
        return found

    def finish(self) -> list[Delta]:
        """See Reader. A header without a message was none: text that a model wrote without channels."""
        found: list[Delta] = []
        if self._header is not None:
            text = self._header + self._held
            if text and not any(mark in text for mark in HARMONY.special):
                found.append(Content(text))
        else:
            self._part(self._held, found)
            self._end_call(found)
        return found

    def _in_header(self, text: str, found: list[Delta]) -> str:
        assert self._header is not None
        text = self._header + text
        place = text.find(BEGIN)
        if place < 0:
            self._header = text
            return ""
        header, self._header = text[:place], None
        name = re.search(r"to=(?:functions\.)?([\w.-]+)", header)
        channel = re.search(r"<\|channel\|>\s*(\w+)", header)
        self._name, self._body = name[1] if name else "", ""
        self._kind = channel[1] if channel else "final"
        return text[place + len(BEGIN) :]

    def _in_message(self, text: str, found: list[Delta]) -> str:
        places = [(place, mark) for mark in ENDS if (place := text.find(mark)) >= 0]
        if places:
            place, mark = min(places)
            self._part(text[:place], found)
            self._end_call(found)
            self._header = ""
            return text[place + len(mark) :]
        keep = max(overlap(text, mark) for mark in ENDS)
        self._part(text[: len(text) - keep], found)
        self._held = text[len(text) - keep :]
        return ""

    def _part(self, text: str, found: list[Delta]) -> None:
        """More of a message."""
        if self._name:
            self._body += text
        elif text:
            found.append(Reasoning(text) if self._kind == "analysis" else Content(text))

    def _end_call(self, found: list[Delta]) -> None:
        if not self._name:
            return
        try:
            (call,) = as_json(f'{{"name": {json.dumps(self._name)}, "arguments": {self._body or "{}"}}}', {})
            found += [self._calls.begin(call.name), self._calls.more(call.arguments)]
        except Malformed:
            found.append(Content(self._body))
        self._name = ""
