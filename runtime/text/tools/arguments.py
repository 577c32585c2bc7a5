"""Rules for arguments, in each way that families write them: what a schema allows, in Lark's form.

    json     {"a": 1, "b": "x"}         all that llguidance knows of JSON Schema
    python   a=1, b="x"                 each value as JSON, which Python reads but for true, false and null
    tags     <parameter=a>\\n1\\n</parameter>\\n<parameter=b>\\nx\\n</parameter>\\n
    pairs    <arg_key>a</arg_key>\\n<arg_value>1</arg_value>\\n
    gemma    {a:1,b:<|"|>x<|"|>}        types, enum, properties, required and items; of texts no more

Where JSON is not the form, required arguments come first, in the order of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from flatlm.runtime.text.guidance import JSON_FORM
from flatlm.runtime.text.tools.families import Form

Schema = Mapping[str, Any]
Spell = Callable[[str], str]  # literal text in Lark's form

TAGS = {  # by style: before the value of an argument, the end of its line, the tag after it
    "tags": ("<parameter={}>\n", "\n", "</parameter>\n"),
    "pairs": ("<arg_key>{}</arg_key>\n<arg_value>", "", "</arg_value>\n"),
}
ESCAPES = 'nrtbfu"\\'  # of JSON's those that Python reads alike


def rules_of(form: Form, number: int, schema: Schema, spell: Spell) -> list[str]:
    """The rules of `arguments_NUMBER`, for one tool."""
    name = f"arguments_{number}"
    if form.style == "json":
        return [f"{name}: {_json({**schema, 'type': 'object'})}"]
    if form.style == "gemma":
        return _Gemma(name, form.quote, spell).rules(schema)
    if form.style == "python":
        return [f"{name}: {_python(schema, spell)}"]
    return [f"{name}: {_between(TAGS[form.style], schema, spell)}"]


def properties_of(schema: Schema) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """(required, other) properties, each with the definitions that it may refer to."""
    known = schema.get("properties")
    known = known if isinstance(known, Mapping) else {}
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    each = {name: {**shared, **(one if isinstance(one, Mapping) else {})} for name, one in known.items()}
    needed = schema.get("required", ())
    return (
        {name: one for name, one in each.items() if name in needed},
        {name: one for name, one in each.items() if name not in needed},
    )


def _json(schema: Schema, **more: Any) -> str:
    form = {
        **JSON_FORM,
        "lenient": True,
        **more,
    }  # a schema for people has more in it than a grammar can hold
    return f"%json {json.dumps({**schema, 'x-guidance': form}, ensure_ascii=False)}"


def _joined(required: list[str], others: list[str], comma: str) -> str:
    """All of `required`, then any of `others`, in this order, with commas between."""
    if required:
        return " ".join([f" {comma} ".join(required), *(f"({comma} {one})?" for one in others)])
    ways = [
        " ".join([one, *(f"({comma} {later})?" for later in others[place + 1 :])])
        for place, one in enumerate(others)
    ]
    return f"({' | '.join(ways)})?" if ways else '""'


def _python(schema: Schema, spell: Spell) -> str:
    parts = [
        [f"{spell(name + '=')} {_json(one, json_allowed_escapes=ESCAPES)}" for name, one in group.items()]
        for group in properties_of(schema)
    ]
    return _joined(parts[0], parts[1], spell(", "))


def _between(tags: tuple[str, str, str], schema: Schema, spell: Spell) -> str:
    """Each value between `tags`."""
    opened, line, ended = tags
    required, others = (
        [
            f"{spell(opened.format(name))} {_text_or_json(one, line, spell)} {spell(ended)}"
            for name, one in group.items()
        ]
        for group in properties_of(schema)
    )
    return " ".join([*required, *(f"({one})?" for one in others)]) or '""'


def _text_or_json(schema: Schema, line: str, spell: Spell) -> str:
    """A value and the end of its `line`: a text stands as it is, without what could begin a tag."""
    if schema.get("type") != "string":
        return f"{_json(schema)} {spell(line)}"
    if isinstance(choices := schema.get("enum"), list) and choices:
        return f"({' | '.join(spell(str(one)) for one in choices)}) {spell(line)}"
    most = schema.get("maxLength")
    times = f"{{0,{most}}}" if isinstance(most, int) else "*"
    return f"/[^<]{times}{line.encode('unicode_escape').decode()}/"


class _Gemma:
    """The rules of one tool's arguments: each object and list is one of its own."""

    def __init__(self, name: str, quote: str, spell: Spell) -> None:
        self._name, self._spell, self._quote = name, spell, spell(quote)
        self._count = 0
        self._rules: list[str] = []

    def rules(self, schema: Schema) -> list[str]:
        first = f"{self._name}: {self._object(schema)}"
        if not self._quote.startswith("<["):  # no token: seen where it ends
            self._rules.append(f"{self._name}_text[lazy]: TEXT {self._quote}")
        return [first, *self._rules]

    def _value(self, schema: Schema) -> str:
        kind, choices = schema.get("type"), schema.get("enum")
        if isinstance(choices, list) and choices:
            return f"({' | '.join(map(self._literal, choices))})"
        if kind == "string":
            ended = f"TEXT {self._quote}" if self._quote.startswith("<[") else f"{self._name}_text"
            return f"{self._quote} {ended}"
        if kind == "object":
            return self._named(self._object(schema))
        if kind == "array":
            items = schema.get("items")
            item = self._value(items if isinstance(items, Mapping) else {"type": "string"})
            return self._named(f'"[" ({item} ("," {item})*)? "]"')
        return _json(
            {key: one for key, one in schema.items() if key != "enum"} if kind else {"type": "number"}
        )

    def _object(self, schema: Schema) -> str:
        parts = [
            [f"{self._spell(name + ':')} {self._value(one)}" for name, one in group.items()]
            for group in properties_of(schema)
        ]
        return f'"{{" {_joined(parts[0], parts[1], self._spell(","))} "}}"'

    def _literal(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self._quote} {self._spell(value)} {self._quote}"
        return self._spell(json.dumps(value))

    def _named(self, rule: str) -> str:
        self._count += 1
        self._rules.append(f"{self._name}_{self._count}: {rule}")
        return f"{self._name}_{self._count}"
