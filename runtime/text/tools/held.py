"""Calls held to a form by a grammar: their arguments always fit the schema of the tool that they name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from flatlm.runtime.text.tools.arguments import rules_of
from flatlm.runtime.text.tools.families import Family
from flatlm.runtime.text.tools.request import Tooling

THOUGHT = {False: "", True: "thoughts BLANK", None: "(opened thoughts BLANK)?"}

# Tokens that are hidden elsewhere are no part of a text, so those that may be in it are named.
TERMINALS = ["TEXT: /(.|\\n)*/", "BLANK: /[ \\n]{0,3}/"]


def grammar_of_calls(
    family: Family, tooling: Tooling, token_ids: Mapping[str, int], thinking: bool | None
) -> str | None:
    """A grammar in Lark's form of the answers that `tooling` allows; None where calls are like text.

    `token_ids` are the ids of texts that are one token. `thinking`: whether thoughts come before calls that
    must be, True where the prompt has opened them, None where the model may.
    """
    form, opener = family.form, family.opener
    if not (tooling.forced or (opener and family.among_text)):
        return None
    spell = Speller(token_ids)
    joint, tail = spell(form.joint), spell(form.tail)
    several = f"({joint} one)*" if joint and tooling.several else ""
    heads = [spell(form.head.replace("{name}", name)) for name in tooling.schemas]
    ways = [f"{head} arguments_{number} {spell(form.foot)}" for number, head in enumerate(heads)]
    rules = [
        f"calls: {spell(form.lead.removeprefix(opener))} one {several} {tail}",
        f"one: {' | '.join(ways)}",
        *(rule for n, one in enumerate(tooling.schemas.values()) for rule in rules_of(form, n, one, spell)),
    ]
    again = tooling.several and not joint and bool(tail)
    if tooling.forced:
        start = _calls_alone(spell(opener), again, thinking)
    else:
        start = _calls_among_text(spell(opener), again, [spell(mark) for mark in family.think])
    return "\n".join([*start, *_thoughts(*map(spell, family.think)), *rules, *TERMINALS])


def _calls_alone(opener: str, again: bool, thinking: bool | None) -> list[str]:
    more = f'("\\n"? {opener} calls)*' if again else ""
    return [f"start: {THOUGHT[thinking]} {opener} calls {more}"]


def _calls_among_text(opener: str, again: bool, marks: Sequence[str]) -> list[str]:
    """Marks of thoughts that are tokens may stand in a text; an opener that is none is seen where it ends."""
    parts = f"(TEXT {' | TEXT '.join(marks)})*" if _is_token(marks[0]) else ""
    said = f"TEXT {opener}" if _is_token(opener) else "said"
    rules = [f"start: ({parts} {said} calls){'*' if again else '?'} {parts} TEXT"]
    return rules if _is_token(opener) else [*rules, f"said[lazy]: TEXT {opener}"]


def _thoughts(opened: str, ended: str) -> list[str]:
    lazy = "" if _is_token(ended) else "[lazy]"
    return [f"opened: {opened}", f"thoughts{lazy}: TEXT {ended}"]


def _is_token(spelled: str) -> bool:
    return spelled.startswith("<[")


class Speller:
    """Literal text in Lark's form, what is a token of its own by its id."""

    def __init__(self, token_ids: Mapping[str, int]) -> None:
        self._ids = token_ids

    def __call__(self, text: str) -> str:
        if not text:
            return ""
        parts, at = list[str](), 0
        while at < len(text):
            token = next((token for token in self._ids if text.startswith(token, at)), "")
            if token:
                parts.append(f"<[{self._ids[token]}]>")
                at += len(token)
                continue
            places = [place for token in self._ids if (place := text.find(token, at)) >= 0]
            end = min(places, default=len(text))
            parts.append(json.dumps(text[at:end], ensure_ascii=False))
            at = end
        return " ".join(parts)
