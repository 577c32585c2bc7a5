"""What an answer must be, as users write it: a JSON object, a JSON schema, a regular expression, a grammar.

Flags may name a file. What is said in JSON or by a keyword never does: it may come from somebody else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flatlm.runtime.errors import UsageError

KINDS = ("json_object", "json_schema", "regex", "grammar")  # fields of SamplingOptions; one at a time
MOST_TEXT = 2**16  # characters of a grammar or schema
MOST_DEPTH = 64  # objects and lists within each other in a schema


class Grammar(NamedTuple):
    """A `kind` of KINDS and its text; a JSON object is the schema of any."""

    kind: str
    text: str


def grammar_of(options: Any) -> Grammar | None:
    """The grammar that SamplingOptions ask for. UsageError where they ask for two."""
    asked = [kind for kind in KINDS if getattr(options, kind) not in (None, False)]
    if len(asked) > 1:
        flags = " and ".join("--" + kind.replace("_", "-") for kind in asked)
        raise UsageError(f"{flags} both say what the answer must be: give one", param=asked[1])
    if not asked:
        return None
    if asked == ["json_object"]:
        return Grammar("json_schema", '{"type": "object"}')
    return Grammar(asked[0], getattr(options, asked[0]))


def schema_of(value: Any) -> str:
    """A JSON schema, given as an object or as its text, as text. UsageError where it is none."""
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        if not isinstance(schema, Mapping | bool):
            raise ValueError("a schema is a JSON object")
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the JSON schema is none: {error}: {value!r:.80}", param="json_schema") from None
    if _depth(schema) > MOST_DEPTH:
        raise UsageError(f"the JSON schema is nested more than {MOST_DEPTH} deep", param="json_schema")
    return _bounded(text, "json_schema")


def grammar_text(value: Any) -> str:
    """A grammar in Lark's form or llama.cpp's GBNF, as text."""
    if not isinstance(value, str):
        raise UsageError(f"--grammar {value!r:.80}: it must be text", param="grammar")
    return _bounded(value, "grammar")


def of_flag(param: str, read: Callable[[str], str]) -> Callable[[str], str]:
    """The reader of a flag that is given a text, or a file that holds one."""

    def text_of(given: str) -> str:
        flag = "--" + param.replace("_", "-")
        if not os.path.isfile(given):
            if any(mark in given for mark in "{}=:\n"):
                return read(given)
            raise UsageError(f"{flag} {given!r:.80} is neither a file nor what it should hold", param=param)
        try:
            with Path(given).open(encoding="utf-8") as file:
                return read(file.read(MOST_TEXT + 1))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{flag}: {given} cannot be read: {error}", param=param) from None

    return text_of


def _bounded(text: str, param: str) -> str:
    if len(text) > MOST_TEXT:
        raise UsageError(f"{param} has more than {MOST_TEXT} characters", param=param)
    return text


def _depth(value: Any) -> int:
    """Of objects and lists within each other."""
    deepest, level = 0, [value]
    while level:
        level = [inner for one in level for inner in _inner(one)]
        deepest += 1
    return deepest - 1


def _inner(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else []
