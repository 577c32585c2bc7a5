"""The jinja2 environment of chat templates: the trimming, filters, globals and tags of transformers 5.

A template is untrusted code. The sandbox refuses attributes with an underscore in front and changing its
inputs; what is put into it here is kept free of ways around that. jinja2 is optional: it is imported inside.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import jinja2
    import jinja2.ext
    import jinja2.utils


def environment() -> jinja2.Environment:
    """A new environment; templates of it share nothing."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, dict=Dict(), namespace=_safe_namespace()
    )
    return made


def raise_exception(message: str) -> NoReturn:
    """How a template refuses messages."""
    import jinja2

    raise jinja2.exceptions.TemplateError(message)


def strftime_now(form: str) -> str:
    """The local time in a format of strftime."""
    return datetime.now().strftime(form)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter: characters of HTML stay as they are."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class Dict:
    """The part of `dict` that templates use; the class itself would lead into Python."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _generation_tag() -> type[jinja2.ext.Extension]:
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        """{% generation %} … {% endgeneration %} marks text for training; here it is just its body."""

        tags = {"generation"}  # noqa: RUF012  so declared in jinja2

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(
                parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line
            )

    return Generation


def _safe_namespace() -> type[jinja2.utils.Namespace]:
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace as Unsafe

    def check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"access to {name!r} of a namespace is unsafe")

    class Namespace(Unsafe):
        """jinja2's, which refuses names with an underscore in front: they reach into Python."""

        def __init__(*args: Any, **values: Any) -> None:
            for name in dict(*args[1:], **values):
                check(name)
            Unsafe.__init__(*args, **values)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            super().__setitem__(name, value)

    return Namespace
