"""Every option is declared once, here: a dataclass field with flags, help and bounds.

From the declaration come the flag (`add_flags`, `from_args`), the JSON field and keyword argument
(`from_json`), the help text and the check. Flags are those of llama.cpp where it has one.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from flatlm.runtime.declared import check_fields as check_fields
from flatlm.runtime.declared import declared_by
from flatlm.runtime.declared import did_you_mean as did_you_mean
from flatlm.runtime.declared import option as option
from flatlm.runtime.errors import UsageError
from flatlm.runtime.grammars import (
    grammar_of,
    grammar_text,
    of_flag,
    schema_of,
)
from flatlm.runtime.logit_bias import Bias, bias_of_flag, biases_of

T = TypeVar("T")

OTHER_NAMES = {"max_tokens": "n", "temperature": "temp"}  # of keywords, as other libraries have them


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
    presence_penalty: float = option(
        0.0, "--presence-penalty", low=-100.0, high=100.0, help="taken off the logit of a recent token"
    )
    frequency_penalty: float = option(
        0.0, "--frequency-penalty", low=-100.0, high=100.0, help="the same for each time that it is there"
    )
    logit_bias: tuple[Bias, ...] = option(
        (),
        "--logit-bias",
        metavar="TOKEN=BIAS",
        help="added to the logit of a token, by its id or of each in a text; `false` bans it; may be given "
        "often",
        from_flag=bias_of_flag,
        from_value=biases_of,
    )
    ignore_eos: bool = option(False, "--ignore-eos", help="never write a token that ends the answer")
    json_object: bool = option(False, "--json-object", help="the answer is a JSON object")
    json_schema: str | None = option(
        None,
        "--json-schema",
        metavar="FILE|TEXT",
        help="the answer is JSON of this schema",
        from_flag=of_flag("json_schema", schema_of),
        from_value=schema_of,
    )
    regex: str | None = option(None, "--regex", metavar="TEXT", help="the answer is a match of this")
    grammar: str | None = option(
        None,
        "--grammar",
        metavar="FILE|TEXT",
        help="the answer is of this grammar, in llama.cpp's GBNF or Lark's form",
        from_flag=of_flag("grammar", grammar_text),
        from_value=grammar_text,
    )
    logprobs: int | None = option(
        None,
        "--logprobs",
        metavar="K",
        low=0,
        high=100,
        help="with --json: log probabilities, of each token and of the K likeliest at its place",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "logit_bias", biases_of(self.logit_bias))
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", schema_of(self.json_schema))
        check_fields(self)
        grammar_of(self)


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
        choices=("auto", "native", "numpy", "ort", "ort-file"),
        help="what executes the model; auto: native, else numpy; ort-file: the file as it stands in "
        "onnxruntime, without a plan",
    )
    device: str = option("cpu", "--device", choices=("cpu", "cuda"), help="cuda needs the ort backend")
    fast: bool = option(
        False, "--fast", help="ort with onnxruntime's own operators: faster on CUDA, not bit-exact"
    )
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
    for name, declared in declared_by(cls).items():
        if declared.meta.get("flags") and name not in without:
            group.add_argument(*declared.meta["flags"], **declared.settings())


def from_args(args: argparse.Namespace, cls: type[T], start: T | None = None) -> T:
    """The options `cls` from parsed flags, what is not given as in `start`, or the default.

    UsageError names the flag, the value and what is allowed.
    """
    values: dict[str, Any] = {}
    for name, declared in declared_by(cls).items():
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
    declared = declared_by(cls)
    others = [other for other, name in OTHER_NAMES.items() if name in declared]
    for name in values:
        if name not in declared and name not in ignore:
            hint = did_you_mean(name, [*declared, *others])
            raise UsageError(f"unknown option {name!r}{hint}", param=name)
    chosen = {name: value for name, value in values.items() if name in declared and value is not None}
    changes = {name: declared[name].from_value(value) for name, value in chosen.items()}
    return cls(**changes) if start is None else dataclasses.replace(start, **changes)  # type: ignore[type-var]


def of_call(cls: type[T], given: Sequence[object], keywords: Mapping[str, Any], *others: type) -> T:
    """The options `cls` of a call that takes objects and keywords: the object among those `given`, else the
    defaults, with what the keywords change. What belongs to the classes `others` is theirs to take.

    Raises UsageError as `from_json`, for an object that is of none of the classes, and for one option by two
    names.
    """
    for other_name, name in OTHER_NAMES.items():
        if keywords.get(other_name) is not None and keywords.get(name) is not None:
            raise UsageError(f"{other_name} and {name} are one option: give one of them", param=other_name)
    keywords = {OTHER_NAMES.get(name, name): value for name, value in keywords.items()}
    classes = (cls, *others)
    for one in given:
        if not isinstance(one, classes):
            names = " or ".join(known.__name__ for known in classes)
            raise UsageError(f"options are {names}, not {type(one).__name__}: {one!r:.80}")
    start = next((one for one in given if isinstance(one, cls)), None)
    theirs = {item.name for other in others for item in dataclasses.fields(other)}
    return from_json(keywords, cls, theirs, start)
