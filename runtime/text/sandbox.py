"""The jinja2 environment of chat templates: the trimming, filters, globals and tags of transformers 5.

A template is untrusted code. The sandbox refuses attributes with an underscore in front and changing its
inputs; what is put into it here is kept free of ways around that, and what it may use has limits (limits.py).
lipsum is left out. jinja2 is optional: it is imported inside.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from flatlm.runtime.text import limits

if TYPE_CHECKING:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
    import jinja2.utils


COUNTED, JOINED = "items of a loop", "~"  # filters that no template can name


def environment() -> jinja2.Environment:
    """A new environment; templates of it share nothing."""
    from jinja2.ext import loopcontrols

    made = _limited_environment()(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), loopcontrols]
    )
    made.finalize = limits.check_size  # each value that is put out
    made.filters["tojson"] = tojson
    made.filters = {name: _limited_filter(name, filter_) for name, filter_ in made.filters.items()}
    made.filters["join"] = _join()
    made.filters |= {COUNTED: limits.counted, JOINED: limits.joined}
    del made.globals["lipsum"]
    made.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, dict=Dict(), namespace=_safe_namespace()
    )
    return made


def _limited_environment() -> type[jinja2.sandbox.SandboxedEnvironment]:
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    class Counting(NodeTransformer):
        """Has loops count their items, and `~` ask for the length of what it makes."""

        def visit_For(self, node: Any) -> Any:  # noqa: N802  so called by jinja2
            self.generic_visit(node)
            node.iter = nodes.Filter(node.iter, COUNTED, [], [], None, None, lineno=node.lineno)
            return node

        def visit_Concat(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            pieces = nodes.List(node.nodes, lineno=node.lineno)
            return nodes.Filter(pieces, JOINED, [], [], None, None, lineno=node.lineno)

    class Limited(ImmutableSandboxedEnvironment):
        """jinja2's, with limits.py asked before whatever may grow or go on."""

        intercepted_binops = frozenset({"+", "*", "**", "%"})
        concat = staticmethod(limits.joined)

        def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
            return Counting().visit(super()._parse(source, name, filename))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            limits.check_operation(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, called: Any, /, *args: Any, **values: Any) -> Any:
            limits.step()
            text = getattr(getattr(called, "__wrapped__", called), "__self__", None)
            if isinstance(text, str):
                checked = limits.checked_arguments(text, called.__name__, [*args, *values.values()])
                args = tuple(checked[: len(args)])
            return super().call(context, called, *args, **values)

    return Limited


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    place = 1 if hasattr(function, "jinja_pass_arg") else 0  # of the value; before it jinja2's own

    @functools.wraps(function)  # jinja2 has attributes on it
    def limited(*args: Any, **values: Any) -> Any:
        limits.step()
        limits.check_filter(name, args[place], [*args[place + 1 :], *values.values()])
        result = function(*args, **values)
        if isinstance(result, str):
            limits.room(len(result))
        return result

    return limited


def _join() -> Callable[..., str]:
    from jinja2 import pass_environment
    from jinja2.filters import make_attrgetter

    @pass_environment
    def join(environment: Any, value: Any, d: Any = "", attribute: Any = None) -> str:
        """jinja2's, of limited length."""
        limits.step()
        pieces = value if attribute is None else map(make_attrgetter(environment, attribute), value)
        return limits.joined(pieces, str(d))

    return join


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
