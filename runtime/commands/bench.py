"""flatlm bench: speed, in llama-bench's columns."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.cli import add_verb
from runtime.commands.common import add_model, model_path, say
from runtime.errors import UsageError
from runtime.options import (
    BackendOptions,
    DraftOptions,
    SamplingOptions,
    add_flags,
    check_fields,
    from_args,
    option,
)
from runtime.progress import Progress, ProgressLine

if TYPE_CHECKING:
    from runtime.artifact import Artifact
    from runtime.backends import Backend
    from runtime.drafting.speculator import Speculator


@dataclass(frozen=True)
class BenchOptions:
    """What is measured."""

    p: tuple[int, ...] = option(
        (512,), "-p", "--n-prompt", low=0, high=2**20, metavar="N", help="prompt tokens; 0: no"
    )
    n: tuple[int, ...] = option(
        (128,), "-n", "--n-gen", low=0, high=2**20, metavar="N", help="tokens to write; 0: no"
    )
    d: tuple[int, ...] = option(
        (0,), "-d", "--n-depth", low=0, high=2**20, metavar="N", help="tokens in the context before"
    )
    r: int = option(5, "-r", "--repetitions", low=1, high=1000, help="runs of each test")
    output: str = option("md", "-o", "--output", choices=("md", "json", "csv"), help="form of the result")

    def __post_init__(self) -> None:
        check_fields(self)


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb's parser."""
    description = (
        "Measure tokens per second: pp reads a prompt, tg writes. Several sizes: -p 128,512. "
        "With --draft, text is written greedily too: plainly (text), and drafted."
    )
    parser = add_verb(subparsers, "bench", run, description)
    add_model(parser)
    add_flags(parser, BenchOptions)
    add_flags(parser, BackendOptions)
    add_flags(parser, DraftOptions, without=("draft_rule",))
    parser.add_argument(
        "--per-op", action="store_true", help="where the time of a step goes, for every test; native only"
    )


def run(args: argparse.Namespace) -> int:
    """Print one row per test."""
    from runtime import bench
    from runtime.artifact import open_artifact
    from runtime.llm import open_chosen

    chosen, options = from_args(args, BenchOptions), from_args(args, BackendOptions)
    draft = from_args(args, DraftOptions).draft
    tests = [
        (kind, tokens, depth)
        for depth in chosen.d
        for kind, sizes in (("pp", chosen.p), ("tg", chosen.n))
        for tokens in filter(None, sizes)
    ]
    artifact = open_artifact(model_path(args))
    manifest = artifact.manifest
    size = sum(entry.size for name, entry in manifest.files.items() if name.startswith("model.onnx"))
    results = []
    with closing(open_chosen(artifact, options)) as backend:
        threads = getattr(backend, "threads", options.threads)
        for kind, tokens, depth in tests:
            name = bench.name_of(kind, tokens, depth)
            with ProgressLine(name, "runs") as progress:
                rates = bench.measure(backend, kind, tokens, chosen.r, progress, depth)
            row = (manifest.name, size, manifest.parameters, backend.name, threads, name)
            results.append(bench.Result(*row, rates=tuple(rates)))
        for name, speculator in _drafted(draft, artifact, backend, options):
            for tokens in filter(None, chosen.n):
                with ProgressLine(f"{name}{tokens}", "runs") as progress:
                    rates = _write(artifact, backend, speculator, tokens, chosen.r, progress)
                row = (manifest.name, size, manifest.parameters, backend.name, threads, f"{name}{tokens}")
                results.append(bench.Result(*row, rates=tuple(rates)))
        if args.per_op:
            _per_op(backend, tests)
    print(bench.table(results, chosen.output))
    return 0


def _per_op(backend: Backend, tests: list[tuple[str, int, int]]) -> None:
    """On stderr, a table for every test."""
    from runtime import bench, per_op
    from runtime.backends.native import NativeBackend

    if not isinstance(backend, NativeBackend):
        raise UsageError(f"--per-op looks into the native backend, not into {backend.name}")
    for kind, tokens, depth in tests:
        rows = min(tokens, bench.BATCH) if kind == "pp" else 1
        say(f"{bench.name_of(kind, tokens, depth)}, one step of {rows} tokens:")
        say(per_op.table(per_op.measure(backend, rows, depth)))


def _drafted(
    draft: str, artifact: Artifact, backend: Backend, options: BackendOptions
) -> Iterator[tuple[str, Speculator | None]]:
    """The tests that write text: (name, who drafts), none where nothing is to be drafted."""
    from runtime.drafting.spec import build_speculator, parse_draft
    from runtime.llm import open_beside
    from runtime.tokenizer import load_tokenizer

    spec = parse_draft(draft)
    if spec is None:
        return
    yield "text", None
    tokenizer = load_tokenizer(artifact.path)
    speculator = build_speculator(spec, artifact, tokenizer, lambda path: open_beside(backend, path, options))
    with closing(speculator):
        yield "drafted", speculator


def _write(
    artifact: Artifact,
    backend: Backend,
    speculator: Speculator | None,
    tokens: int,
    repetitions: int,
    progress: Progress,
) -> list[float]:
    """Tokens per second of greedy answers of `tokens` tokens, end tokens ignored; a prompt per repetition."""
    from runtime import engine
    from runtime.drafting.verify import invariant
    from runtime.parity import PROMPTS
    from runtime.sampler import make_sampler
    from runtime.tokenizer import load_tokenizer

    tokenizer, sampler, rates = load_tokenizer(artifact.path), make_sampler(SamplingOptions()), []
    for i in range(repetitions):
        prompt = tokenizer.encode(PROMPTS[i % len(PROMPTS)])
        engine.check_prompt(backend, prompt, more=tokens)
        if speculator is not None:
            speculator.begin(invariant(sampler))
        answer = engine.generate(backend, prompt, sampler, tokens + 1, speculator=speculator)
        next(answer)  # has read the prompt
        started = time.perf_counter()
        rates.append(sum(1 for _ in answer) / (time.perf_counter() - started))
        progress(i + 1, repetitions)
    return rates
