"""An answer read as it comes: text, thoughts and calls told apart, whatever pieces it comes in.

A call is given when it is complete and parses; what does not is text, nothing is lost. Where a grammar
vouches for the form, name and arguments are given as they come.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from flatlm.runtime.text.stop_text import overlap
from flatlm.runtime.text.tools.deltas import CallDelta, Content, Delta, Reasoning, new_id
from flatlm.runtime.text.tools.families import Family, Form
from flatlm.runtime.text.tools.written import Brackets, Malformed, Schemas, as_json


class Reader(Protocol):
    """Pieces of text in, parts of an answer out."""

    def push(self, piece: str) -> list[Delta]:
        """What is certain with this piece."""
        ...

    def finish(self) -> list[Delta]:
        """The rest, when no piece follows."""
        ...


class Calls:
    """The calls of an answer so far: their numbers and ids."""

    def __init__(self, name_id: Callable[[], str] = new_id) -> None:
        self.count, self._name_id = 0, name_id

    def begin(self, name: str) -> CallDelta:
        """The first piece of the next call."""
        self.count += 1
        return CallDelta(self.count - 1, self._name_id(), name)

    def more(self, arguments: str) -> CallDelta:
        """A piece of the arguments of the last one."""
        return CallDelta(self.count - 1, arguments=arguments)


class MarkedReader:
    """Reads an answer of `family`, to a request with the tools of `schemas`.

    `thinking`: the prompt has opened the thoughts already. `vouched`: a grammar holds calls to `family.form`.
    """

    def __init__(
        self, family: Family, schemas: Schemas, thinking: bool = False, vouched: bool = False
    ) -> None:
        self._family, self._schemas = family, schemas
        self._calls = Calls()
        self._form = family.form if vouched and family.form.style == "json" else None
        self._think = _Thoughts(family.think) if thinking else None
        self._call: _Whole | _Streamed | None = None
        self._held = ""  # text that is not given yet
        self._said = False  # something that is no blank
        self._thought = thinking

    def push(self, piece: str) -> list[Delta]:
        found: list[Delta] = []
        text: str | None = piece
        while text:
            text = self._step(text, found)
        return found

    def finish(self) -> list[Delta]:
        found: list[Delta] = []
        if self._think is not None:
            found += self._think.finish()
        elif self._call is not None:
            deltas, text = self._call.finish()
            found += deltas
            self._say(text, found)
        held, self._held = self._held, ""
        if held.strip() or not (self._calls.count or self._thought):
            self._say(held, found)
        return found

    def _step(self, text: str, found: list[Delta]) -> str:
        """Go on by the part of `text` that belongs to what is open; returns the rest."""
        if self._think is not None:
            deltas, ended, rest = self._think.push(text)
            found += deltas
            if ended:
                self._think = None
            return rest
        if self._call is not None:
            deltas, said, ended, rest = self._call.push(text)
            found += deltas
            if ended:
                self._call = None
                self._say(said, found)
            return rest
        return self._text(self._held + text, found)

    def _text(self, text: str, found: list[Delta]) -> str:
        """Text up to what opens something; the rest. What could open something is held."""
        self._held = ""
        think, opener = self._family.think[0], self._family.opener
        places = [(place, mark) for mark in (think, opener) if mark and (place := text.find(mark)) >= 0]
        if self._may_be_bare:
            start = len(text) - len(self._bared(text))
            if text[start:][:1] in (("{", "[") if not opener else ("{",)):
                self._call = self._opened("", text[:start])
                return text[start:]
            if start == len(text):
                self._held = text
                return ""
        if places:
            place, mark = min(places)
            before = text[:place].rstrip()
            self._say(before.lstrip() if self._parted else before, found)
            if mark == think:
                self._think, self._thought = _Thoughts(self._family.think), True
            else:
                self._call = self._opened(mark, text[len(before) : place])
            return text[place + len(mark) :]
        keep = max(overlap(text, mark) for mark in (think, opener))
        certain = text[: len(text) - keep]
        certain = certain.rstrip() if self._schemas else certain  # blanks before a call are dropped
        self._held = text[len(certain) :]
        self._say(certain.lstrip() if self._parted else certain, found)
        return ""

    @property
    def _may_be_bare(self) -> bool:
        """Whether a call may begin here that nothing announces, as small models write them."""
        return bool(self._schemas) and not self._said

    @property
    def _parted(self) -> bool:
        """Whether blanks here only part what is said from the thoughts."""
        return self._thought and not self._said

    def _bared(self, text: str) -> str:
        """Without blanks and marks before it; empty where a mark may just begin."""
        text = text.lstrip()
        for mark in () if self._family.opener else self._family.special:
            text = text.removeprefix(mark).lstrip()
            if text and mark.startswith(text):
                return ""
        return text

    def _opened(self, mark: str, blank: str) -> _Whole | _Streamed:
        if self._form is not None and mark == self._family.opener:
            return _Streamed(self._form, mark, self._calls)
        return _Whole(self._family, self._schemas, blank, mark, self._calls)

    def _say(self, text: str, found: list[Delta]) -> None:
        if text:
            self._said = True
            found.append(Content(text))


class _Thoughts:
    """Up to the end of the thoughts. Blanks around them belong to nothing."""

    def __init__(self, marks: tuple[str, str]) -> None:
        self._end, self._held, self._begun = marks[1], "", False

    def push(self, text: str) -> tuple[list[Delta], bool, str]:
        """(what is new, whether they have ended, the rest)"""
        text = self._held + text
        place = text.find(self._end)
        if place >= 0:
            self._held = ""
            return self._given(text[:place].rstrip()), True, text[place + len(self._end) :]
        certain = text[: len(text) - overlap(text, self._end)].rstrip()
        self._held = text[len(certain) :]
        return self._given(certain), False, ""

    def finish(self) -> list[Delta]:
        return self._given(self._held.rstrip())

    def _given(self, text: str) -> list[Delta]:
        text = text if self._begun else text.lstrip()
        self._begun = self._begun or bool(text)
        return [Reasoning(text)] if text else []


class _Whole:
    """A call that is given when it is complete: after `blank` and `mark`. One without a mark must name a tool
    that there is, and its arguments.
    """

    def __init__(self, family: Family, schemas: Schemas, blank: str, mark: str, calls: Calls) -> None:
        self._schemas, self._calls, self._opened, self._bare = schemas, calls, blank + mark, not mark
        own = mark == family.opener
        self._parse, self._closer = (family.parse, family.closer) if own else (as_json, "")
        self._begin = family.brackets  # of the value
        self._brackets = Brackets("\"'" if "python" in family.name else '"')
        self._text = ""
        self._skipped = False  # what is before the brackets

    def push(self, text: str) -> tuple[list[Delta], str, bool, str]:
        """(what is new, text if it was no call, whether it has ended, the rest)"""
        before, whole = len(self._text), self._text + text
        if self._closer:
            place = whole.find(self._closer)
            end, closed = place, place + len(self._closer)
        else:
            end = closed = self._bracketed(whole, before)
        if end < 0:
            self._text = whole
            return [], "", False, ""
        self._text = whole[:end]
        deltas, said = self.finish()
        return deltas, said and said + whole[end:closed], True, whole[closed:]

    def _bracketed(self, whole: str, before: int) -> int:
        """Where the value in brackets ends; -1: not yet."""
        start = before
        if not self._skipped:
            places = [place for one in self._begin if (place := whole.find(one)) >= 0]
            if not places:
                return -1
            self._skipped, start = True, min(places)
        end = self._brackets.push(whole[start:])
        return end if end < 0 else start + end

    def finish(self) -> tuple[list[Delta], str]:
        """(the calls that it is, else its text)"""
        try:
            calls = self._parse(self._text, self._schemas)
        except Malformed:
            calls = []
        if self._bare and not all(call.name in self._schemas and call.given for call in calls):
            calls = []
        if not calls:
            return [], self._opened + self._text
        return [one for c in calls for one in (self._calls.begin(c.name), self._calls.more(c.arguments))], ""


class _Streamed:
    """Calls that a grammar holds to `form`: given as they come."""

    def __init__(self, form: Form, opened: str, calls: Calls) -> None:
        self._form, self._calls = form, calls
        self._text = opened  # that has not been understood yet
        self._expected = form.lead
        self._brackets: Brackets | None = None  # of the arguments
        self._closing = self._ended = False
        head, _, behind = form.head.partition("{name}")
        self._head = re.compile(re.escape(head) + "(.+?)" + re.escape(behind), re.DOTALL)

    def push(self, text: str) -> tuple[list[Delta], str, bool, str]:
        """(what is new, nothing, whether it has ended, the rest)"""
        found: list[Delta] = []
        self._text += text
        while self._text or self._ended:
            if self._ended:
                rest, self._text = self._text, ""
                return found, "", True, rest
            if not self._go_on(found):
                break
        return found, "", False, ""

    def finish(self) -> tuple[list[Delta], str]:
        """What was cut short stays as it is."""
        return [], ""

    def _go_on(self, found: list[Delta]) -> bool:
        """Understand the next part of the text; False: more of it is needed."""
        if self._brackets is not None:
            return self._arguments(self._brackets, found)
        if self._expected:
            if not self._text.startswith(self._expected):
                return False
            self._text, self._expected = self._text[len(self._expected) :], ""
            return True
        if self._closing:
            return self._close()
        match = self._head.match(self._text)
        if match is None:
            return False
        found.append(self._calls.begin(match[1]))
        self._text, self._brackets = self._text[match.end() :], Brackets()
        return True

    def _arguments(self, brackets: Brackets, found: list[Delta]) -> bool:
        end = brackets.push(self._text)
        part = self._text if end < 0 else self._text[:end]
        if part:
            found.append(self._calls.more(part))
        self._text = self._text[len(part) :]
        if end >= 0:
            self._brackets, self._expected, self._closing = None, self._form.foot, True
            if not self._form.foot + self._form.tail:
                self._ended = True
        return bool(self._text) or self._ended

    def _close(self) -> bool:
        """Behind a call: another one, or the end."""
        form = self._form
        if form.joint and self._text.startswith(form.joint):
            self._text, self._closing = self._text[len(form.joint) :], False
            return True
        if self._text.startswith(form.tail):
            self._text, self._ended = self._text[len(form.tail) :], True
            return True
        return False
