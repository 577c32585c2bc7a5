"""What form an answer is asked to have: the fields of all dialects as options of `runtime/grammars.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flatlm.runtime.errors import UsageError
from flatlm.runtime.grammars import schema_of
from flatlm.runtime.options import SamplingOptions
from flatlm.runtime.settings import Settings

JSON = {"json_object": True}


def with_form(options: SamplingOptions, form: dict[str, Any]) -> SamplingOptions:
    """`options` with a form in the place of that of the server's defaults. UsageError for two at once."""
    if not form:
        return options
    none = {"json_object": False, "json_schema": None, "regex": None, "grammar": None}
    return replace(options, **{**none, **form})


def openai_form(body: Settings) -> dict[str, Any]:
    """`response_format`, and llama.cpp's `json_schema` and `grammar` beside it."""
    found = _typed(body.table("response_format"), "response_format")
    if body.values.get("json_schema") is not None:
        found["json_schema"] = schema_of(body["json_schema"])
    if grammar := body.get("grammar", str):
        found["grammar"] = grammar
    return found


def responses_form(body: Settings) -> dict[str, Any]:
    """`text.format` of OpenAI's Responses."""
    return _typed(body.table("text").table("format"), "text.format")


def ollama_form(body: Settings) -> dict[str, Any]:
    """`format`: json, or a schema."""
    form = body.values.get("format")
    if form is None or form == "":
        return {}
    if form == "json":
        return dict(JSON)
    if not isinstance(form, dict):
        raise UsageError(f"format: 'json' or a JSON schema, not {form!r:.80}", param="format")
    return {"json_schema": schema_of(form)}


def _typed(form: Settings, name: str) -> dict[str, Any]:
    """A form with a type. A schema stands in it or in its `json_schema`."""
    kind = form.get("type", str, "text")
    if kind == "text":
        return {}
    if kind not in ("json_object", "json_schema"):
        raise UsageError(f"{name}: the type is text, json_object or json_schema, not {kind!r}", param=name)
    inner = form.table("json_schema")
    schema = inner.values.get("schema") if "schema" in inner else form.values.get("schema")
    if schema is None:
        if kind == "json_schema":
            raise UsageError(f"{name}: a schema is missing", param=name)
        return dict(JSON)
    if not isinstance(schema, dict):
        raise UsageError(f"{name}: a schema is an object, not {schema!r:.80}", param=name)
    return {"json_schema": schema_of(schema)}
