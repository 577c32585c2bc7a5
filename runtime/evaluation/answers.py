"""What an answer says, read strictly: a number, a choice A to E, yes or no.

The answer is looked for in the last \\boxed{…}, after `####`, after "the answer is", and in the last line, in
this order; the first place that says anything decides. A place that says several things, or something
malformed, says nothing: the result is None, not a guess. Numbers are exact (Fraction). A unit, a currency and
a percent sign are dropped (50 % is 50); "12 out of 20" is a fraction, as 3/4 is; 1.5 million is 1,500,000.
Numbers written as words are not read. Where the text goes on with a question of its own, it ends there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fractions import Fraction

from flatlm.runtime.evaluation.numerals import Numeral, numerals, plain

LETTERS = "ABCDE"
QUESTIONS = ("Q:", "Question:", "### Question", "Problem:", "Human:", "User:")  # how lines begin new ones
COPIED = ("", "answer", "choice")  # boxes of the prompt's own words, which small models repeat

_BOX = re.compile(r"\\?boxed\s*\{")
_PHRASE = re.compile(
    r"\b(?:answers?(?!\s+(?:choices|options))|correct\s+(?:option|choice))\b[^.\n:=]{0,60}?"
    r"(?:\b(?:is|are|be)\b|:|=)(?!\s+not\b)[:\s]*",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    r"^[ \t>*#]*(?:(?:next|new|another)[ \t]+)?(?:Q|Question|Problem|Human|User)\b[ \t]*[0-9]*[ \t*]*(?::|$)"
    r"|^[ \t]*#{1,6}[ \t]*(?:Question|Problem)\b|^[ \t]*<\|(?:im_start|user|start_header_id)\|>",
    re.IGNORECASE | re.MULTILINE,
)
_SAYS = re.compile(  # text that has said something, if only a step on the way
    r"[0-9]|boxed|####|\banswer|\([A-E]\)|^\W*[A-E]\W*$|\b(?:[Yy]es|[Nn]o)\b", re.MULTILINE
)
_MARKER = re.compile(r"^\s*(?:[-•]\s+|[0-9]+[.)]\s+|step\s+[0-9]+\s*[:.]\s*)+", re.IGNORECASE)
_SEVERAL = re.compile(r"[,;]\s|\b(?:and|or)\b")
_BOXED_LETTER = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?[(\[]?([A-E])(?:[)\].:](?:\s.*)?)?$", re.IGNORECASE | re.DOTALL
)
_SAID_LETTER = re.compile(
    r"(?:(?:option|choice)\s+)?(?:\(([A-E])\)|(A(?!\s+[a-z])|[B-E])\b)(?!\s*(?:,|/|and|or)\s*\(?[A-E]\b)"
)
_LAST_LETTER = re.compile(r"\(([A-E])\)|\b(?:[Oo]ption|[Cc]hoice)\s+([A-E])\b|^([A-E])(?:[).:]|$)")
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def number(text: str, options: Iterable[str] = (), complete: bool = True) -> Fraction | None:
    """The number that `text` answers. Where it was cut off (not `complete`) its last line is no answer."""
    text, complete = answered(text, complete)
    for box in reversed(boxes(text)):
        content = plain(box)
        found = numerals(content)
        if found:
            return _only(content, found)
    text = plain(text)
    for place in _announced(text):
        found = numerals(place)
        if found:
            return (_right_side(place) or found)[0].value
    for line in reversed(_lines(text)) if complete else ():
        found = numerals(line)
        if found:
            return (_right_side(line)[:1] or found)[-1].value
    return None


def choice(text: str, options: Iterable[str] = (), complete: bool = True) -> str | None:
    """The letter A to E that `text` chooses; the text or number of exactly one of `options` stands for it."""
    options = tuple(options)
    text, complete = answered(text, complete)
    for box in reversed(boxes(text)):
        content = plain(box).strip(" .")
        if content.lower() not in COPIED:
            match = _BOXED_LETTER.match(content)
            return match[1].upper() if match else _option_saying(content, options)
    text = plain(text)
    for place in _announced(text):
        match = _SAID_LETTER.match(place)
        letter = (match[1] or match[2]) if match else _option_saying(place.strip(" ."), options)
        if letter:
            return letter
    last = _lines(text)[-1:] if complete else []
    letters = {"".join(groups) for line in last for groups in _LAST_LETTER.findall(line)}
    return letters.pop() if len(letters) == 1 else None


def yes_no(text: str, options: Iterable[str] = (), complete: bool = True) -> str | None:
    """`yes` or `no`; a place that says both says nothing."""
    text, complete = answered(text, complete)
    boxed, text = [plain(box) for box in reversed(boxes(text))], plain(text)
    for place in [*boxed, *_announced(text), *(_lines(text)[-1:] if complete else [])]:
        said = {word.lower() for word in _YES_NO.findall(place)}
        if said:
            return said.pop() if len(said) == 1 else None
    return None


READERS: dict[str, Callable[..., Fraction | str | None]] = {
    "number": number,
    "choice": choice,
    "yes_no": yes_no,
}


def vote(answers: Iterable[str | None]) -> str | None:
    """The most frequent answer, of equally frequent ones the first; None has no vote."""
    counts: dict[str, int] = {}
    for answer in answers:
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
    return max(counts, key=lambda answer: counts[answer]) if counts else None


def answered(text: str, complete: bool = True) -> tuple[str, bool]:
    """`text` up to where, having said something, it begins another question; whether that is complete."""
    for question in _QUESTION.finditer(text):
        if _SAYS.search(text, 0, question.start()):
            return text[: question.start()], True
    return text, complete


def boxes(text: str) -> list[str]:
    """The contents of all complete \\boxed{…}, in order; of nested ones the innermost."""
    found = []
    for match in _BOX.finditer(text):
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        content = text[match.end() : end - 1]
        if depth == 0 and not _BOX.search(content):
            found.append(content)
    return found


def _only(text: str, found: list[Numeral]) -> Fraction | None:
    """The value of a box's only numeral, in an equation of its right side; None where there are several."""
    if not _SEVERAL.search(text):
        found = _right_side(text) or numerals(text.partition("=")[0]) or found
    return found[0].value if len(found) == 1 else None


def _right_side(text: str) -> list[Numeral]:
    """The numerals after the last equals sign."""
    return numerals(text.rpartition("=")[2]) if "=" in text else []


def _announced(text: str) -> list[str]:
    """What follows `####` and "the answer is", to the end of its line; the last ones first."""
    ends = [match.end() for match in re.finditer(r"####\s*", text)][::-1]
    ends += [match.end() for match in _PHRASE.finditer(text)][::-1]
    return [text[end:].partition("\n")[0].strip() for end in ends]


def _lines(text: str) -> list[str]:
    """The lines that say something, without list markers."""
    lines = (_MARKER.sub("", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def _option_saying(content: str, options: tuple[str, ...]) -> str | None:
    """The letter of the only option that says `content`, as text or as a number."""
    wanted, fits = numerals(content), []
    for letter, option in zip(LETTERS, map(plain, options), strict=False):
        found = numerals(option)
        same_number = len(wanted) == len(found) == 1 and wanted[0].value == found[0].value is not None
        if same_number or _squeezed(option) == _squeezed(content):
            fits.append(letter)
    return fits[0] if len(fits) == 1 else None


def _squeezed(text: str) -> str:
    return "".join(text.split()).strip(".").lower()
