"""flatlm eval: quality of a model on a text."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass

from runtime.cli import add_verb
from runtime.commands.common import add_json, add_model, open_llm, print_json, read_text
from runtime.errors import UsageError
from runtime.options import BackendOptions, add_flags, check_fields, did_you_mean, from_args, option
from runtime.progress import ProgressLine

MEASURES = ("ppl",)


@dataclass(frozen=True)
class EvalOptions:
    """What is measured."""

    tokens: int | None = option(
        None, "--tokens", low=2, high=2**40, help="use the text's first N tokens; default: all"
    )
    window: int = option(512, "--window", low=2, high=2**20, help="tokens of a window, each read on its own")

    def __post_init__(self) -> None:
        check_fields(self)


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb's parser."""
    description = "ppl: perplexity over fixed windows without a begin token; a shorter last one is dropped."
    parser = add_verb(subparsers, "eval", run, description)
    add_model(parser)
    parser.add_argument("measure", metavar="MEASURE", help=", ".join(MEASURES))
    parser.add_argument("--text", required=True, metavar="FILE", help="the text, - for stdin")
    add_json(parser)
    add_flags(parser, EvalOptions)
    add_flags(parser, BackendOptions)


def run(args: argparse.Namespace) -> int:
    """Print the perplexity, the predicted tokens and the mean −ln p with its standard error."""
    from runtime.evaluate import perplexity

    if args.measure not in MEASURES:
        raise UsageError(f"unknown measure {args.measure!r}{did_you_mean(args.measure, MEASURES)}")
    options = from_args(args, EvalOptions)
    text = read_text(args.text)
    with open_llm(args) as llm, ProgressLine("perplexity", "windows") as progress:
        ids = llm.tokenizer.encode(text, special=False)[: options.tokens]
        result = perplexity(llm.backend, ids, options.window, progress)
        backend = llm.backend.name
    if args.json:
        print_json({**asdict(result), "window": options.window, "backend": backend})
    else:
        print(f"perplexity {result.perplexity:.4f}  ({result.tokens} tokens in {result.windows} windows)")
        print(f"nll {result.nll:.5f} ± {result.nll_error:.5f}")
    return 0
