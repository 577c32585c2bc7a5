"""flatlm bench: speed, in llama-bench's columns."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import dataclass

from runtime.cli import add_verb
from runtime.commands.common import add_model, model_path
from runtime.options import BackendOptions, add_flags, check_fields, from_args, option
from runtime.progress import ProgressLine


@dataclass(frozen=True)
class BenchOptions:
    """What is measured."""

    p: tuple[int, ...] = option(
        (512,), "-p", "--n-prompt", low=0, high=2**20, metavar="N", help="prompt tokens; 0: no"
    )
    n: tuple[int, ...] = option(
        (128,), "-n", "--n-gen", low=0, high=2**20, metavar="N", help="tokens to write; 0: no"
    )
    r: int = option(5, "-r", "--repetitions", low=1, high=1000, help="runs of each test")
    output: str = option("md", "-o", "--output", choices=("md", "json", "csv"), help="form of the result")

    def __post_init__(self) -> None:
        check_fields(self)


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb's parser."""
    description = "Measure tokens per second: pp reads a prompt, tg writes. Several sizes: -p 128,512."
    parser = add_verb(subparsers, "bench", run, description)
    add_model(parser)
    add_flags(parser, BenchOptions)
    add_flags(parser, BackendOptions)


def run(args: argparse.Namespace) -> int:
    """Print one row per test."""
    from runtime import bench
    from runtime.artifact import open_artifact
    from runtime.llm import open_chosen

    chosen, options = from_args(args, BenchOptions), from_args(args, BackendOptions)
    tests = [("pp", tokens) for tokens in chosen.p if tokens] + [
        ("tg", tokens) for tokens in chosen.n if tokens
    ]
    artifact = open_artifact(model_path(args))
    manifest = artifact.manifest
    size = sum(entry.size for name, entry in manifest.files.items() if name.startswith("model.onnx"))
    results = []
    with closing(open_chosen(artifact, options)) as backend:
        threads = getattr(backend, "threads", options.threads)
        for kind, tokens in tests:
            with ProgressLine(f"{kind}{tokens}", "runs") as progress:
                rates = bench.measure(backend, kind, tokens, chosen.r, progress)
            row = (manifest.name, size, manifest.parameters, backend.name, threads, f"{kind}{tokens}")
            results.append(bench.Result(*row, rates=tuple(rates)))
    print(bench.table(results, chosen.output))
    return 0
