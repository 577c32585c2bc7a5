"""How an answer looks on a terminal: wrapped at words, thinking dimmed or hidden, drafts coloured.

Anywhere else (a pipe, a file) the text goes out as it comes.
"""

from __future__ import annotations

import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TextIO

OPEN, CLOSE = "<think>", "</think>"  # around what a model thinks before it answers
DIM, RESET = "\x1b[2m", "\x1b[0m"
_PARTS = re.compile(r"(\n)|([^\S\n]+)|(\S+)")


@dataclass(frozen=True, slots=True)
class Look:
    """What is done to an answer. `colours`: escape sequences by the drafter that a piece came from."""

    terminal: bool = False
    hide_thinking: bool = False
    colours: Mapping[str, str] = field(default_factory=dict)


class Thoughts:
    """Pieces of text, each told from what a model thinks; a mark that may be coming is held back."""

    def __init__(self, begins_thinking: bool = False) -> None:
        self.thinking = begins_thinking
        self._held = ""

    def push(self, piece: str) -> Iterator[tuple[str, bool]]:
        """(text, whether it is a thought) of what is certain with `piece`; the marks are thoughts."""
        self._held += piece
        while self._held:
            mark = CLOSE if self.thinking else OPEN
            at = self._held.find(mark)
            if at < 0:
                kept = _overlap(self._held, mark)
                certain, self._held = (
                    self._held[: len(self._held) - kept],
                    self._held[len(self._held) - kept :],
                )
                if certain:
                    yield certain, self.thinking
                return
            if self.thinking:
                yield self._held[: at + len(mark)], True
            else:
                if at:
                    yield self._held[:at], False
                yield mark, True
            self._held = self._held[at + len(mark) :]
            self.thinking = not self.thinking

    def finish(self) -> Iterator[tuple[str, bool]]:
        """What was held back."""
        if self._held:
            yield self._held, self.thinking
        self._held = ""


class Wrapped:
    """Text onto a terminal, broken between words where a line would not fit; as wide as it is at the moment.

    Lines between ``` fences are code and stay as they are. A word is held until it is whole.
    """

    def __init__(self, out: TextIO, width: Callable[[], int]) -> None:
        self._out, self._width = out, width
        self._column = 0
        self._word: list[tuple[str, str]] = []  # (part, style)
        self._blank = ""  # between the last word and this one
        self._line = ""  # so far, without styles
        self._code = False

    def write(self, text: str, style: str = "") -> None:
        for newline, blank, word in _PARTS.findall(text):
            if word:
                self._word.append((word, style))
            else:
                self.flush()
                if newline:
                    self._newline()
                else:
                    self._blank += blank

    def flush(self) -> None:
        """Write the word that is held."""
        if not self._word:
            return
        word = "".join(part for part, _ in self._word)
        blank, self._blank = self._blank, ""
        size, edge = columns(word), self._width()
        if not self._code and self._column and self._column + len(blank) + size > edge:
            self._out.write("\n")
            self._column = 0
        elif blank:
            self._out.write(blank)
            self._column += len(blank)
        for part, style in self._word:
            self._out.write(f"{style}{part}{RESET}" if style else part)
        self._column = (self._column + size) % max(1, edge) if size > edge else self._column + size
        self._line += word
        self._word = []

    def _newline(self) -> None:
        if self._line.lstrip().startswith("```"):
            self._code = not self._code
        self._blank, self._line, self._column = "", "", 0
        self._out.write("\n")


def show(
    pieces: Iterable[tuple[str, str]], look: Look, begins_thinking: bool = False, out: TextIO | None = None
) -> str:
    """Write the pieces, each with the drafter it came from, as they come; returns all their text."""
    out = sys.stdout if out is None else out
    thoughts, wrapped = Thoughts(begins_thinking), Wrapped(out, width)
    whole: list[str] = []

    def put(parts: Iterable[tuple[str, bool]], colour: str = "") -> None:
        for text, thought in parts:
            if thought and look.hide_thinking:
                continue
            if look.terminal:
                wrapped.write(text, DIM if thought else colour)
            else:
                out.write(text)
        out.flush()

    try:
        for piece, drafter in pieces:
            whole.append(piece)
            put(thoughts.push(piece), look.colours.get(drafter, ""))
    finally:
        put(thoughts.finish())
        wrapped.flush()
        out.flush()
    return "".join(whole)


def width() -> int:
    """Of the terminal in columns, at this moment."""
    return shutil.get_terminal_size().columns


def columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.combining(character) or character in "\u200d\ufe0f":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _overlap(text: str, mark: str) -> int:
    """How many of the last characters of `text` may be the beginning of `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
