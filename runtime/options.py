"""Every option is declared once, here: a dataclass field with flags, help and bounds.

From the declaration come the flag (`add_flags`, `from_args`), the JSON field and keyword argument
(`from_json`), the help text and the check. Flags are those of llama.cpp where it has one.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field
from typing import Any, TypeVar

from flatlm.runtime.errors import UsageError

T = TypeVar("T")


def option(
    default: Any,
    *flags: str,
    help: str,  # noqa: A002  argparse's word
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    metavar: str | None = None,
) -> Any:
    """A dataclass field. `low` and `high` are inclusive; for a tuple they bound each element."""
    metadata = {
        "flags": flags,
        "help": help,
        "low": low,
        "high": high,
        "choices": choices,
        "metavar": metavar,
    }
    return field(default=default, metadata=metadata)


def check_fields(options: Any) -> None:
    """The `__post_init__` of option classes: a value outside its declaration never becomes an object."""
    for declared in dataclasses.fields(options):
        value = getattr(options, declared.name)
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None:
                _check(declared, item)


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen and when the answer ends. Temperature 0 is greedy."""

    n: int = option(
        512, "-n", "--predict", low=-1, high=2**31, help="most tokens to write, -1: until the context is full"
    )
    temp: float = option(
        0.0, "--temp", low=0.0, high=100.0, help="temperature; 0 always takes the likeliest token"
    )
    top_k: int = option(
        40, "--top-k", low=0, high=2**31, help="sample among the K likeliest tokens, 0: among all"
    )
    top_p: float = option(
        0.95, "--top-p", low=0.0, high=1.0, help="sample among the likeliest tokens of total share P"
    )
    min_p: float = option(
        0.05, "--min-p", low=0.0, high=1.0, help="drop tokens less likely than P × the likeliest one"
    )
    repeat_penalty: float = option(
        1.0, "--repeat-penalty", low=0.01, high=100.0, help="make recent tokens less likely, 1: off"
    )
    repeat_last_n: int = option(
        64, "--repeat-last-n", low=-1, high=2**31, help="how many tokens count as recent, -1: all, 0: none"
    )
    seed: int = option(
        -1, "-s", "--seed", low=-1, high=2**63 - 1, help="seed of the sampling, -1: another each time"
    )
    stop: tuple[str, ...] = option(
        (), "--stop", metavar="TEXT", help="end before this text; may be given often"
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class PromptOptions:
    """How a question is put to the model: runtime/text/prompt_styles.py."""

    prompt_style: str = option(
        "plain",
        "--prompt-style",
        choices=("plain", "cot", "ps"),
        help="cot: think step by step; ps: plan, then solve",
    )
    re2: bool = option(
        False, "--re2", help="have the question read twice (Re2), what precedes a line --- once"
    )
    reads: int = option(2, "--reads", low=1, high=5, help="how often --re2 reads it")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class BackendOptions:
    """Where and how wide the model runs."""

    backend: str = option(
        "auto",
        "--backend",
        choices=("auto", "native", "numpy", "ort"),
        help="what executes the model; auto: native, else numpy",
    )
    device: str = option("cpu", "--device", choices=("cpu", "cuda"), help="cuda needs the ort backend")
    threads: int | None = option(
        None, "-t", "--threads", low=1, high=1024, help="threads; default: the fast cores"
    )
    ctx: int | None = option(
        None,
        "-c",
        "--ctx",
        low=1,
        high=2**24,
        help="tokens the context holds; default: the model's, at most 4096",
    )
    batch: int = option(1, low=1, high=512, help="sequences that are computed together")  # verbs have flags

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class DraftOptions:
    """Who guesses ahead. Answers are the same; only how fast they come depends on it."""

    draft: str = option(
        "off",
        "--draft",
        metavar="WHAT",
        help="off, auto[:MODEL,…], maxgram, the folder of a smaller MODEL with the same tokenizer, or "
        "cascade:DRAFTER,…[:K[:L]]",
    )
    draft_rule: str = option(
        "invariant",
        "--draft-rule",
        choices=("invariant", "rejection"),
        help="when sampling: invariant writes the very tokens of plain decoding, rejection follows the same "
        "law and keeps more guesses",
    )

    def __post_init__(self) -> None:
        check_fields(self)


def add_flags(parser: argparse.ArgumentParser, cls: type, without: Collection[str] = ()) -> None:
    """Add the flags of `cls`, but for the fields `without`. Values stay text until `from_args`."""
    group = parser.add_argument_group(cls.__name__.removesuffix("Options").lower() + " options")
    for name, declared in _declared(cls).items():
        if declared.meta.get("flags") and name not in without:
            group.add_argument(*declared.meta["flags"], **declared.settings())


def from_args(args: argparse.Namespace, cls: type[T], start: T | None = None) -> T:
    """The options `cls` from parsed flags, what is not given as in `start`, or the default.

    UsageError names the flag, the value and what is allowed.
    """
    values: dict[str, Any] = {}
    for name, declared in _declared(cls).items():
        given = getattr(args, name, None)
        if given is not None:
            values[name] = declared.from_text(given)
    return cls(**values) if start is None else dataclasses.replace(start, **values)  # type: ignore[type-var]


def refuse(args: argparse.Namespace, verb: str, *groups: type) -> None:
    """UsageError where a flag of `groups` was given, which `verb` has no use for."""
    for declared in itertools.chain.from_iterable(map(dataclasses.fields, groups)):
        if getattr(args, declared.name, None):
            raise UsageError(
                f"{verb} has no {declared.metadata['flags'][0]}: leave it out", param=declared.name
            )


def from_json(
    values: Mapping[str, Any], cls: type[T], ignore: Collection[str] = (), start: T | None = None
) -> T:
    """The options `cls` from a JSON object or keyword arguments; names are field names, null is the default.

    What is not there is as in `start`, or the default. Raises UsageError for a name that is neither a field
    nor in `ignore`, and for a value that does not fit.
    """
    declared = _declared(cls)
    for name in values:
        if name not in declared and name not in ignore:
            raise UsageError(f"unknown option {name!r}{did_you_mean(name, declared)}", param=name)
    chosen = {name: value for name, value in values.items() if name in declared and value is not None}
    changes = {name: declared[name].from_value(value) for name, value in chosen.items()}
    return cls(**changes) if start is None else dataclasses.replace(start, **changes)  # type: ignore[type-var]


def of_call(cls: type[T], given: Sequence[object], keywords: Mapping[str, Any], *others: type) -> T:
    """The options `cls` of a call that takes objects and keywords: the object among those `given`, else the
    defaults, with what the keywords change. What belongs to the classes `others` is theirs to take.

    Raises UsageError as `from_json`, and for an object that is of none of the classes.
    """
    classes = (cls, *others)
    for one in given:
        if not isinstance(one, classes):
            names = " or ".join(known.__name__ for known in classes)
            raise UsageError(f"options are {names}, not {type(one).__name__}: {one!r:.80}")
    start = next((one for one in given if isinstance(one, cls)), None)
    theirs = {item.name for other in others for item in dataclasses.fields(other)}
    return from_json(keywords, cls, theirs, start)


def did_you_mean(word: str, known: Collection[str]) -> str:
    """`; did you mean 'x'?` where something known is close to `word`, else the whole list."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"


@dataclass(frozen=True)
class _Declared:
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
        return {**settings, "action": "append"} if self.kind == tuple[str, ...] else settings

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
            return self.kind(value)
        items = [value] if isinstance(value, self.element) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, self.element) for item in items):
            raise _unfit(self.field, repr(value), f"a list of {allowed}")
        return tuple(items)


def _declared(cls: type) -> dict[str, _Declared]:
    """The options of a class by their names."""
    kinds = typing.get_type_hints(cls)
    return {item.name: _Declared(item, _base(kinds[item.name])) for item in dataclasses.fields(cls)}


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
