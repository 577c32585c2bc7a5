"""How the authors of Re2 read an answer, for comparison with `answers`.

Written from the behaviour of their published parser (github.com/Tebmer/Rereading-LLM-Reasoning,
utils/answer_parser.py and scorer.py). It reads 1,234,567 as 1234, \\frac{1}{2} as 1, $1,250.50 as 1250 and
"12 out of 20" as 12.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

TOLERANCE = 1e-3

_BOX = re.compile(r"boxed\{(.*?)\}")  # up to the first closing brace
_NUMBER = re.compile(r"[-+]?\d*[.,/]?\d+")
_LONE_LETTER = re.compile(r"(?<![a-zA-Z])[A-E](?![a-zA-Z])")


def number(text: str, options: Sequence[str] = ()) -> str | None:
    """The first number of the last box, else of what follows "answer is ", else of the last sentence.

    Where that place has none, the last number of the whole text.
    """
    boxed = _BOX.findall(text)
    if boxed:
        place = boxed[-1]
    elif "answer is " in text:
        place = text.rpartition("answer is ")[2]
    else:
        place = text.rpartition("\n")[2].rpartition(". ")[2]
    first = _NUMBER.search(place)
    if first:
        return first[0].replace(",", "")
    found = _NUMBER.findall(text)
    return found[-1] if found and _value(found[-1]) is not None else None


def choice(text: str, options: Sequence[str] = ()) -> str | None:
    """The last (A) … (E) of the last box or line, else the last lone letter, else the most similar option.

    Similar is the option that shares most words; where none shares any, that is the first one.
    """
    boxed = _BOX.findall(text)
    place = (boxed[-1] if boxed else text.rpartition("\n")[2]).strip()
    letters: list[str] = re.findall(r"\(([A-E])\)", place) or _LONE_LETTER.findall(place)
    if letters:
        return letters[-1]
    labelled = [f"{letter}){option}" for letter, option in zip("ABCDE", options, strict=False)]
    scores = [_similarity(option, place) for option in labelled]
    return "ABCDE"[scores.index(max(scores))] if scores else None


def right(answer: str | None, target: str) -> bool:
    """Numbers within 0.001 of each other, letters the same."""
    if answer is None:
        return False
    a, b = _value(answer), _value(target)
    return abs(a - b) < TOLERANCE if a is not None and b is not None else answer.lower() == target.lower()


READERS: dict[str, Callable[..., str | None]] = {"number": number, "choice": choice}


def _value(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _similarity(a: str, b: str) -> float:
    if a == b:
        return 2.0
    if " " not in a + b:
        return 0.0
    ours, theirs = a.split(" "), b.split(" ")
    return len(set(ours) & set(theirs)) / max(len(ours), len(theirs))
