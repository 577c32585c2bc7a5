"""The numerals in a line of a model's answer, with their exact values.

`plain` takes LaTeX, markdown and typographic variants away; `numerals` then finds what is written as a
number: 1,234,567 · -3 · .5 · 1e5 · 3/4 · 1 1/2 · 12 out of 20 · 1.5 million. What looks like a number and
is none (1.234,56 · 10:30 · 2^5 · √2 · 1/2/2020) is found with the value None; H2O, x_1, 3rd and m^2 are
not found.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

MOST_DIGITS = 40  # a model in a loop writes digits without end

_WRAPPERS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_FRACTIONS = re.compile(
    r"(-?)\s*\\[dtc]?frac\s*(?:\{\s*([^{}]+?)\s*\}\s*\{\s*([^{}]+?)\s*\}|([0-9])\s*([0-9]))"
)
_POWERS = re.compile(r"\s*(?:\\times|\\cdot|[×x*·])\s*10\s*\^\s*\{?\s*([-+]?[0-9]{1,3})\s*\}?")
_POWER_OF_TEN = re.compile(r"(?<![\w.,^])10\s*\^\s*\{?\s*([-+]?[0-9]{1,3})\s*\}?")
_VULGAR = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "⅕": "1/5", "⅛": "1/8"}
_SIGNS = {"\\approx": "=", "\\%": "%", "\\$": "$", "\\sqrt": "√", "\\pi": "π"}
_TYPOGRAPHY = str.maketrans("−﹣－０１２３４５６７８９．，％＄≈", "---0123456789.,%$=")
_THIN = "(?:\\\\[,!;:]|[\u00a0\u202f\u2009])"  # LaTeX's and Unicode's thin spaces
_CURRENCY = r"(?:US)?[$£€¥₹]"

_DIGITS = re.compile(r"[0-9.,]*[0-9][0-9.,]*")
_VALID = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}|[0-9]+)?(?:\.[0-9]+)?")
_EXPONENT = re.compile(r"[eE][-+]?[0-9]{1,3}(?![0-9A-Za-z])")
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(r"\s*(thousand|million|billion|trillion)\b", re.IGNORECASE)
_SLASH, _SPACE = re.compile(r"\s*/\s*"), re.compile(r"\s+")
_OUT_OF = re.compile(r"\s+out\s+of\s+(?:(?:the|every|a|total|of)\s+)*", re.IGNORECASE)


@dataclass(frozen=True)
class Numeral:
    """A numeral at text[start:end]; `value` is None where it is malformed."""

    value: Fraction | None
    start: int
    end: int


def plain(text: str) -> str:
    """`text` without LaTeX commands, markdown and currency, and with ASCII signs and digits."""
    text = text.translate(_TYPOGRAPHY)
    for sign, fraction in _VULGAR.items():
        text = text.replace(sign, f" {fraction}")
    text = re.sub(rf"(?<=[0-9])(?:\{{,\}}|{_THIN})(?=[0-9]{{3}}(?![0-9]))", ",", text)  # 1{,}234 and 1\,234
    while _WRAPPERS.search(text):
        text = _WRAPPERS.sub(r" \1 ", text)
    text = _FRACTIONS.sub(_slashed, text)
    text = _POWERS.sub(r"e\1", text)
    text = _POWER_OF_TEN.sub(r"1e\1", text)
    for command, sign in _SIGNS.items():
        text = text.replace(command, sign)
    text = re.sub(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?", " ", text)
    text = re.sub(r"\\[a-zA-Z]+|\\[^a-zA-Z]|\*\*|__|[`*]", " ", text)
    text = re.sub(r"[{}~]", "", text)
    text = re.sub(r"(?<![0-9A-Za-z)])[–—](?=[0-9])", "-", text)
    text = re.sub(rf"-\s*{_CURRENCY}\s*(?=[0-9.])", "-", text)
    text = re.sub(rf"{_CURRENCY}\s*-\s*(?=[0-9.])", "-", text)
    text = re.sub(_CURRENCY, " ", text)
    text = re.sub(r"^\s*-\s+(?=[0-9.])", "-", text) if "\n" not in text else text
    return re.sub(r"(?<![0-9)]\s)\b(?:negative|minus)\s+(?=[0-9.])", "-", text, flags=re.IGNORECASE)


def _slashed(match: re.Match[str]) -> str:
    sign, above, below, one, two = match.groups()
    return f"{sign or ' '}{above or one}/{below or two}"


def numerals(text: str) -> list[Numeral]:
    """The numerals of `text` (already `plain`), in order."""
    found: list[Numeral] = []
    for match in _DIGITS.finditer(text):
        numeral = _single(text, match)
        if numeral is not None and not (found and found[-1].end > match.start()):  # no exponent of the last
            found.append(numeral)
    found = _joined(text, found, _SLASH, _quotient)
    found = _joined(text, found, _SPACE, _mixed)
    found = [_scaled(text, numeral) for numeral in found]
    return _joined(text, found, _OUT_OF, _quotient)


def _single(text: str, match: re.Match[str]) -> Numeral | None:
    """One run of digits, points and commas; None where it is part of a word, a power or an ordinal."""
    start, end = match.start(), match.end()
    end -= len(match[0]) - len(match[0].rstrip(".,"))
    leading = len(match[0]) - len(match[0].lstrip(".,"))
    if leading and not (leading == 1 and match[0][0] == "." and not text[start - 1 : start].isalnum()):
        start += leading  # so .5 keeps its point, …5 does not
    before, after = text[:start], text[end:]
    if re.search(r"[A-Za-z_^]$|[0-9]:$", before) or re.match(r"(?:st|nd|rd|th)\b", after):
        return None
    exponent = _EXPONENT.match(after)
    if exponent:
        end += exponent.end()
        after = text[end:]
    malformed = re.search(r"√\s*$", before) or re.match(r"\s*[\^√π]|:[0-9]|[xyz](?![A-Za-z])", after)
    digits = text[start:end].replace(",", "")
    valid = not malformed and _VALID.fullmatch(text[start : end - (exponent.end() if exponent else 0)])
    value = Fraction(digits) if valid and len(digits) <= MOST_DIGITS else None
    if re.search(r"(?:^|[^0-9A-Za-z).%\]])[-+]$", before):
        start -= 1
        value = -value if value is not None and text[start] == "-" else value
    return Numeral(value, start, end)


def _joined(
    text: str,
    found: list[Numeral],
    between: re.Pattern[str],
    combine: Callable[[Numeral, Numeral, str], Numeral | None],
) -> list[Numeral]:
    """`found` with neighbours made one where `between` is what separates them and `combine` allows it."""
    result: list[Numeral] = []
    for numeral in found:
        if result and between.fullmatch(text, result[-1].end, numeral.start):
            joined = combine(result[-1], numeral, text)
            if joined is not None:
                result[-1] = joined
                continue
        result.append(numeral)
    return result


def _quotient(a: Numeral, b: Numeral, text: str) -> Numeral:
    """a / b; malformed with a third part, as in a date."""
    if a.value is None or b.value is None or b.value <= 0 or "/" in text[a.start : a.end]:
        return Numeral(None, a.start, b.end)
    return Numeral(a.value / b.value, a.start, b.end)


def _mixed(a: Numeral, b: Numeral, text: str) -> Numeral | None:
    """1 1/2, and not 5 3."""
    if a.value is None or b.value is None or a.value.denominator != 1 or not 0 < b.value < 1:
        return None
    if "/" not in text[b.start : b.end] or "/" in text[a.start : a.end]:
        return None
    value = a.value - b.value if text[a.start] == "-" else a.value + b.value
    return Numeral(value, a.start, b.end)


def _scaled(text: str, numeral: Numeral) -> Numeral:
    match = _SCALE.match(text, numeral.end)
    if match is None or numeral.value is None:
        return numeral
    return Numeral(numeral.value * _SCALES[match[1].lower()], numeral.start, match.end())
