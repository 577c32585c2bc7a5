"""What a call looks like once it is written: text → names and arguments, for each way that families have.

    JSON        {"name": "add", "arguments": {"a": 1}}, or a list of such objects
    Python      [add(a=1, b="x")]
    tags        <function=add>\\n<parameter=a>\\n1\\n</parameter>\\n</function>
    pairs       add\\n<arg_key>a</arg_key>\\n<arg_value>1</arg_value>
    name first  add[ARGS]{"a": 1}
    Gemma's     call:add{a:1,b:<|"|>x<|"|>}

All raise Malformed for what is no call: it is text then.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

NAMES = ("name", "function", "tool_name")
ARGUMENTS = ("arguments", "parameters", "args")
LONGEST = 100_000  # characters that are given to Python's parser
LITERALS = {"true": True, "false": False, "null": None}

Schemas = Mapping[str, Mapping[str, Any]]  # by the name of a tool, that of its arguments


class Malformed(ValueError):
    """No call."""


class Written(NamedTuple):
    """A call: the tool's name, the text of a JSON object; whether it was `given`, or stands for none."""

    name: str
    arguments: str
    given: bool = True


Parse = Callable[[str, Schemas], list[Written]]


def as_json(text: str, schemas: Schemas) -> list[Written]:
    """One object or a list of them."""
    value = _json(text)
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise Malformed("no object")
    return [
        _of_object(call.get("function") if isinstance(call.get("function"), dict) else call) for call in calls
    ]


def _of_object(call: Any) -> Written:
    name = next((call[key] for key in NAMES if isinstance(call.get(key), str)), "")
    given: Any = next((call[key] for key in ARGUMENTS if key in call), None)
    if isinstance(given, str):
        given = _json(given or "{}")
    there = any(key in call for key in ARGUMENTS)
    return _written(name, {} if given is None else given)._replace(given=there)


def as_python(text: str, schemas: Schemas) -> list[Written]:
    """A list of calls with keywords, as Llama 3.2, Llama 4 and LFM2 write them."""
    text = text.strip()
    if len(text) > LONGEST:
        raise Malformed("too long")
    try:
        tree = ast.parse(text if text.startswith("[") else f"[{text}]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Malformed("no Python") from None
    calls = tree.elts if isinstance(tree, ast.List) else []
    if not calls:
        raise Malformed("no list of calls")
    return [_of_python(call) for call in calls]


def _of_python(call: ast.expr) -> Written:
    if not isinstance(call, ast.Call) or call.args or any(one.arg is None for one in call.keywords):
        raise Malformed("no call with keywords")
    arguments = {str(keyword.arg): _literal(keyword.value) for keyword in call.keywords}
    return _written(ast.unparse(call.func), arguments)


def _literal(node: ast.expr) -> Any:
    """A value as Python or JSON write it."""
    if isinstance(node, ast.Name) and node.id in LITERALS:
        return LITERALS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {
            _literal(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None
        }
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        raise Malformed("no literal") from None


def as_named(text: str, schemas: Schemas) -> list[Written]:
    """A name, then its arguments, as newer Mistral models write them."""
    match = re.fullmatch(r"\s*([\w.-]+)\s*(?:\[CALL_ID\][^\[]*)?\[ARGS\](.*)", text, re.DOTALL)
    if match is None:
        raise Malformed("no name with arguments")
    return [_written(match[1], _json(match[2]))]


def as_tags(text: str, schemas: Schemas) -> list[Written]:
    """Parameters as text between tags, as Qwen 3.5 and Qwen3-Coder write them: the schema says which are
    text and which JSON.
    """
    match = re.fullmatch(r"\s*<function=([^>\n]+)>(.*?)(?:</function>)?\s*", text, re.DOTALL)
    if match is None:
        raise Malformed("no function")
    known = schemas.get(match[1].strip(), {}).get("properties", {})
    found = re.findall(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", match[2], re.DOTALL)
    return [_written(match[1].strip(), {name: _typed(value, known.get(name, {})) for name, value in found})]


def as_pairs(text: str, schemas: Schemas) -> list[Written]:
    """A name, then keys and values between tags, as GLM 4.5 and later write them."""
    match = re.fullmatch(r"\s*([\w.-]+)\s*((?:<arg_key>.*)?)", text, re.DOTALL)
    if match is None:
        raise Malformed("no name with pairs")
    known = schemas.get(match[1], {}).get("properties", {})
    pair = r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>"
    found = re.findall(pair, match[2], re.DOTALL)
    return [_written(match[1], {name: _typed(value, known.get(name, {})) for name, value in found})]


def _typed(text: str, schema: Any) -> Any:
    """A parameter's text as a value."""
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        return text
    try:
        return json.loads(LITERAL_WORDS.get(text.strip(), text))
    except (ValueError, RecursionError):
        return text


LITERAL_WORDS = {"True": "true", "False": "false", "None": "null"}


def gemma(quote: str) -> Parse:
    """Gemma 4's and FunctionGemma's: keys are bare, texts between two `quote`."""

    def as_gemma(text: str, schemas: Schemas) -> list[Written]:
        match = re.fullmatch(r"\s*call:([^\s{]+)(\{.*\})\s*", text, re.DOTALL)
        if match is None:
            raise Malformed("no call")
        return [_written(match[1], _json(_requoted(match[2], quote)))]

    return as_gemma


def _requoted(text: str, quote: str) -> str:
    """The same as JSON."""
    parts = text.split(quote)
    for place in range(0, len(parts), 2):  # outside of texts
        parts[place] = re.sub(r"([{,]\s*)([A-Za-z_][\w.-]*)\s*:", r'\1"\2":', parts[place])
    for place in range(1, len(parts), 2):
        parts[place] = json.dumps(parts[place], ensure_ascii=False)
    return "".join(parts)


def first_of(*parses: Parse) -> Parse:
    """The first that sees calls in it."""

    def parse(text: str, schemas: Schemas) -> list[Written]:
        for one in parses:
            try:
                return one(text, schemas)
            except Malformed:
                continue
        raise Malformed("none of the ways that calls are written")

    return parse


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed("no JSON") from None


def _written(name: Any, arguments: Any) -> Written:
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise Malformed("no name, or arguments that are no object")
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        if not _is_unicode(name):
            raise Malformed("a name that is no text")
        return Written(name, text if _is_unicode(text) else json.dumps(arguments, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise Malformed("arguments that JSON cannot hold") from None


def _is_unicode(text: str) -> bool:
    """Whether it can be sent: halves of a character, which escapes can spell, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Brackets:
    """Where a value in brackets ends, in a text that comes in pieces. `quotes` begin and end texts in it."""

    def __init__(self, quotes: str = '"') -> None:
        self.depth = 0
        self._quotes, self._quote, self._escaped = quotes, "", False

    def push(self, text: str) -> int:
        """How much of `text` belongs to the value where it ends in it; -1 where it goes on."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quote:
                self._escaped = character == "\\"
                self._quote = "" if character == self._quote else self._quote
            elif character in self._quotes:
                self._quote = character
            elif character in "{[(":
                self.depth += 1
            elif character in ")]}":
                self.depth -= 1
                if self.depth <= 0:
                    return place + 1
        return -1
