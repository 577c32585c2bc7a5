"""An option as a dataclass field declares it: what its flag, its JSON field and its check follow from.

`option` makes such a field, `check_fields` holds an object against its declaration; the classes of options
and what is made of them are in options.py.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, dataclass, field
from typing import Any

from flatlm.runtime.errors import UsageError


def option(
    default: Any,
    *flags: str,
    help: str,  # noqa: A002  argparse's word
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    metavar: str | None = None,
    from_flag: Callable[[str], Any] | None = None,
    from_value: Callable[[Any], Any] | None = None,
) -> Any:
    """A dataclass field. `low` and `high` are inclusive; for a tuple they bound each element.

    `from_flag` reads the text of a flag (an element where it may be given often), `from_value` a keyword or a
    field of JSON, where their kind alone does not say how.
    """
    metadata = {
        "flags": flags,
        "help": help,
        "low": low,
        "high": high,
        "choices": choices,
        "metavar": metavar,
        "from_flag": from_flag,
        "from_value": from_value,
    }
    return field(default=default, metadata=metadata)


def check_fields(options: Any) -> None:
    """The `__post_init__` of option classes: a value outside its declaration never becomes an object."""
    for declared in dataclasses.fields(options):
        value = getattr(options, declared.name)
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None:
                _check(declared, item)


def did_you_mean(word: str, known: Collection[str]) -> str:
    """`; did you mean 'x'?` where something known is close to `word`, else the whole list."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"


@dataclass(frozen=True)
class Declared:
    """An option as its class declares it. `kind`: of its values, int for `int | None`."""

    field: Field[Any]
    kind: Any

    @property
    def meta(self) -> Mapping[str, Any]:
        return self.field.metadata

    @property
    def element(self) -> Any:
        """What one value is: of a tuple, the kind of its elements."""
        return typing.get_args(self.kind)[0] if typing.get_origin(self.kind) is tuple else self.kind

    def settings(self) -> dict[str, Any]:
        """What argparse is told."""
        settings = {"dest": self.field.name, "help": self._help(), "default": None}
        if self.kind is bool:
            return {**settings, "action": "store_true"}
        settings["metavar"] = self.meta["metavar"] or self._metavar()
        return {**settings, "action": "append"} if self._often() else settings

    def _often(self) -> bool:
        """Whether its flag may be given often, for an element each."""
        given = typing.get_origin(self.kind) is tuple and self.meta["from_flag"] is not None
        return given or bool(self.kind == tuple[str, ...])

    def _metavar(self) -> str:
        if self.meta["choices"]:
            return "{" + ",".join(self.meta["choices"]) + "}"
        short = self.field.name.rsplit("_", 1)[-1].upper()
        return {int: "N", float: short if len(short) == 1 else "X"}.get(self.kind, "TEXT")

    def _help(self) -> str:
        default = self.field.default
        shown = default is not MISSING and default not in (None, (), False)
        if shown and isinstance(default, tuple):
            default = ",".join(map(str, default))
        text: str = self.meta["help"] + (f" (default {default})" if shown else "")
        return text.replace("%", "%%")

    def from_text(self, given: Any) -> Any:
        """The value of a flag; `given` is a list where the flag may be given often."""
        if (read := self.meta["from_flag"]) is not None:
            return tuple(map(read, given)) if self._often() else read(given)
        if self.kind == tuple[str, ...]:
            return tuple(given)
        if self.kind in (tuple[int, ...], tuple[float, ...]):
            return tuple(map(self._number, str(given).split(",")))
        return self._number(given) if self.kind in (int, float) else given

    def _number(self, text: str) -> Any:
        try:
            return self.element(text)
        except ValueError:
            raise _unfit(self.field, repr(text), _allowed(self.field, self.element)) from None

    def from_value(self, value: Any) -> Any:
        """The value of a keyword or a field of JSON."""
        if (read := self.meta["from_value"]) is not None:
            return read(value)
        fits = {
            int: lambda: isinstance(value, int) and not isinstance(value, bool),
            float: lambda: isinstance(value, int | float) and not isinstance(value, bool),
            str: lambda: isinstance(value, str),
            bool: lambda: isinstance(value, bool),
        }
        allowed = _allowed(self.field, self.element)
        if self.kind in fits:
            if not fits[self.kind]():
                raise _unfit(self.field, repr(value), allowed)
            try:
                return self.kind(value)
            except OverflowError:  # a whole number beyond all floats
                raise _unfit(self.field, "a number of hundreds of digits", allowed) from None
        items = [value] if isinstance(value, self.element) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, self.element) for item in items):
            raise _unfit(self.field, repr(value), f"a list of {allowed}")
        return tuple(items)


def declared_by(cls: type) -> dict[str, Declared]:
    """The options of a class by their names."""
    kinds = typing.get_type_hints(cls)
    return {item.name: Declared(item, _base(kinds[item.name])) for item in dataclasses.fields(cls)}


def _base(kind: Any) -> Any:
    """int for `int | None`."""
    if isinstance(kind, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def _check(declared: Field[Any], value: Any) -> None:
    meta = declared.metadata
    low, high, choices = meta.get("low"), meta.get("high"), meta.get("choices")
    if choices and value not in choices:
        raise UsageError(
            f"{_name(declared)} {value!r}{did_you_mean(str(value), choices)}", param=declared.name
        )
    if (low is not None and not value >= low) or (high is not None and not value <= high):  # NaN fails too
        raise _unfit(declared, str(value), _allowed(declared, type(value)))


def _unfit(declared: Field[Any], value: str, allowed: str) -> UsageError:
    return UsageError(f"{_name(declared)} {value}: it must be {allowed}", param=declared.name)


def _name(declared: Field[Any]) -> str:
    flags = declared.metadata.get("flags") or (declared.name,)
    return max(flags, key=len)


def _allowed(declared: Field[Any], kind: type) -> str:
    meta = declared.metadata
    text = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")
    if meta.get("choices"):
        return "one of " + ", ".join(meta["choices"])
    return text if meta.get("low") is None else f"{text} from {meta['low']} to {meta['high']}"
