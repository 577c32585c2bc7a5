"""The OpenAPI document: every path that is answered, what it is for, and the fields that are read.

Made of the table of endpoints, so it says what the code does; what answers hold, the protocols' own documents
say better.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Protocol

from flatlm import __version__
from flatlm.runtime.server.asks import FIELDS


class Described(Protocol):
    """What is said of an endpoint."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def summary(self) -> str: ...


KINDS = {"n": "integer", "top_k": "integer", "repeat_last_n": "integer", "seed": "integer"}


def document(endpoints: Iterable[Described]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for one in endpoints:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", one.path)
        operation: dict[str, Any] = {
            "summary": one.summary,
            "tags": [one.summary.partition(":")[0] if ":" in one.summary else "server"],
            "responses": {
                "200": {"description": "done"},
                "default": {"description": "an error, said in JSON"},
            },
        }
        if names := re.findall(r"\{(\w+)\}", path):
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ]
        if one.method == "POST":
            schema = {"$ref": "#/components/schemas/Request"}
            operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
        paths.setdefault(path, {})[one.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "flatlm serve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {"Request": _request()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _request() -> dict[str, Any]:
    """Fields that several protocols share; others are let be, and each protocol has some of its own."""
    fields: dict[str, Any] = {}
    for name, option in FIELDS.items():
        kind = {"ignore_eos": "boolean", "logit_bias": "object"}.get(option, KINDS.get(option, "number"))
        fields[name] = {"type": kind}
    more = {
        "model": {"type": "string"},
        "messages": {"type": "array", "items": {"type": "object"}},
        "prompt": {},
        "stream": {"type": "boolean"},
        "stop": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "tools": {"type": "array", "items": {"type": "object"}},
        "response_format": {"type": "object"},
    }
    return {"type": "object", "properties": {**fields, **more}, "additionalProperties": True}
