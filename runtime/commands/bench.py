"""flatlm bench: speed, in llama-bench's columns."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from flatlm.runtime.commands.common import add_model, model_path, say
from flatlm.runtime.errors import UsageError
from flatlm.runtime.options import (
    BackendOptions,
    DraftOptions,
    SamplingOptions,
    add_flags,
    check_fields,
    from_args,
    option,
)
from flatlm.runtime.progress import Progress, ProgressLine

if TYPE_CHECKING:
    from flatlm.kernels_arm.probes import Limits, Probe
    from flatlm.runtime.backends import Backend
    from flatlm.runtime.drafting.speculator import Speculator
    from flatlm.runtime.format.artifact import Artifact
    from flatlm.runtime.measuring.bench import Report, Result
    from flatlm.runtime.text.tokenizer import Tokenizer


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
    rows: tuple[int, ...] = option(
        (), "--rows", low=1, high=512, metavar="N", help="cost of a step of N rows beside one, as 1,2,4,8"
    )
    together: tuple[int, ...] = option(
        (),
        "--batch",
        low=1,
        high=512,
        metavar="N",
        help="cost of a step of N sequences, a token each, as 2,4,8",
    )
    steady: float = option(
        0.0, "--steady", low=0.0, high=86400.0, metavar="S", help="write for S seconds: first 10 s, last 10 s"
    )
    output: str = option("md", "-o", "--output", choices=("md", "json", "csv"), help="form of the result")

    def __post_init__(self) -> None:
        check_fields(self)


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.set_defaults(run=run)
    parser.description = (
        "Measure tokens per second: pp reads a prompt, tg writes. Several sizes: -p 128,512. "
        "With --draft, text is written greedily too: plainly (text), and drafted. The native backend's "
        "speeds stand beside what the machine can read and multiply at most, as probed around every run."
    )
    add_model(parser)
    add_flags(parser, BenchOptions)
    add_flags(parser, BackendOptions)
    add_flags(parser, DraftOptions, without=("draft_rule",))
    parser.add_argument(
        "--per-op", action="store_true", help="where the time of a step goes, for every test; native only"
    )


def run(args: argparse.Namespace) -> int:
    """Print one row per test."""
    from flatlm.runtime.backends.opening import open_chosen
    from flatlm.runtime.format.artifact import open_artifact
    from flatlm.runtime.measuring import bench

    chosen, options = from_args(args, BenchOptions), from_args(args, BackendOptions)
    options = replace(options, batch=max(chosen.together, default=1))
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
    report = bench.Report()
    placed: list[tuple[list[Limits], Result, int]] = []
    with closing(open_chosen(artifact, options)) as backend:
        threads = getattr(backend, "threads", options.threads)
        probe = _probe(backend)
        for kind, tokens, depth in tests:
            name = bench.name_of(kind, tokens, depth)
            limits: list[Limits] = []
            between = (lambda found=limits: found.append(probe())) if probe else (lambda: None)
            with ProgressLine(name, "runs") as progress:
                rates = bench.measure(backend, kind, tokens, chosen.r, progress, depth, between)
            row = (manifest.name, size, manifest.parameters, backend.name, threads, name)
            report.results.append(result := bench.Result(*row, rates=tuple(rates)))
            if probe:
                placed.append((limits, result, min(tokens, bench.BATCH) if kind == "pp" else 1))
        for name, speculator, tokenizer in _drafted(draft, artifact, backend, options):
            for tokens in filter(None, chosen.n):
                with ProgressLine(f"{name}{tokens}", "runs") as progress:
                    rates = _write(tokenizer, backend, speculator, tokens, chosen.r, progress)
                row = (manifest.name, size, manifest.parameters, backend.name, threads, f"{name}{tokens}")
                report.results.append(bench.Result(*row, rates=tuple(rates)))
        if chosen.rows:
            _rows(report, backend, chosen, "rows", chosen.rows)
        if chosen.together:
            _rows(report, backend, chosen, "sequences", chosen.together)
        if chosen.steady:
            _steady(report, backend, chosen.steady)
        if placed:
            _place(report, backend, placed)
        if args.per_op:
            _per_op(report, backend, tests + [("rows", m, d) for d in chosen.d for m in chosen.rows])
    print(bench.table(report, chosen.output))
    return 0


def _probe(backend: Backend) -> Probe | None:
    """What probes the machine with the threads of the native backend; None for another."""
    from flatlm.kernels_arm.probes import Probe
    from flatlm.runtime.backends.native import NativeBackend

    return Probe(backend.kernels, backend.threads) if isinstance(backend, NativeBackend) else None


def _place(report: Report, backend: Backend, placed: list[tuple[list[Limits], Result, int]]) -> None:
    """The results under their roofs: as JSON, and as a table. `placed` has the tokens of a step of each."""
    from flatlm.runtime.measuring import roofline, thermal

    lines = [
        roofline.place(backend, *one)  # type: ignore[arg-type]  # native: it has limits
        for one in placed
    ]
    for line in lines:
        report.more[line.test] = {"roofline": roofline.as_json(line)}
    report.texts["roofline"] = roofline.table(lines)
    if any(line.repetitions[0] < line.repetitions[1] for line in lines):
        say("the machine changed during some repetitions: the table of shares says how many count")
    report.texts["machine"] = "\n".join(f"{name}: {fact}" for name, fact in thermal.facts().items())


def _rows(report: Report, backend: Backend, chosen: BenchOptions, what: str, sizes: tuple[int, ...]) -> None:
    from flatlm.runtime.measuring import rows

    measure = rows.measure if what == "rows" else rows.measure_together
    for depth in chosen.d:
        with ProgressLine(what, "rounds") as progress:
            costs = measure(backend, sizes, 4 * chosen.r, depth, progress)
        name = what + (f" @ d{depth}" if depth else "")
        report.texts[name], report.extra[name] = rows.table(costs, what), [asdict(cost) for cost in costs]


def _steady(report: Report, backend: Backend, seconds: float) -> None:
    from flatlm.runtime.measuring import sustained

    with ProgressLine("steady state", "s") as progress:
        found = sustained.measure(backend, seconds, progress)
    report.texts["steady"], report.extra["steady"] = sustained.describe(found), asdict(found)


def _per_op(report: Report, backend: Backend, tests: list[tuple[str, int, int]]) -> None:
    """On stderr, a table for every test; in the JSON, too."""
    from flatlm.kernels_arm import probes
    from flatlm.runtime.backends.native import NativeBackend
    from flatlm.runtime.measuring import bench, per_op

    if not isinstance(backend, NativeBackend):
        raise UsageError(f"--per-op looks into the native backend, not into {backend.name}")
    for kind, tokens, depth in tests:
        count = 1 if kind == "tg" else min(tokens, bench.BATCH)
        probe = probes.Probe(backend.kernels, backend.threads)
        before = probe()
        times = per_op.measure(backend, count, depth, logits=count if kind == "rows" else 1)
        limits = probes.mean([before, probe()])
        name = bench.name_of(kind, tokens, depth)
        say(f"{name}, one step of {count} tokens:\n{per_op.table(times, limits)}")
        report.more.setdefault(name, {})["per_op"] = [asdict(time) for time in times]


def _drafted(
    draft: str, artifact: Artifact, backend: Backend, options: BackendOptions
) -> Iterator[tuple[str, Speculator | None, Tokenizer]]:
    """The tests that write text: (name, who drafts, in what tokens), none where nothing is to be drafted."""
    from flatlm.runtime.drafting.spec import build_speculator, open_beside, parse_draft
    from flatlm.runtime.text.tokenizer import load_tokenizer

    spec = parse_draft(draft)
    if spec is None:
        return
    tokenizer = load_tokenizer(artifact.path)
    yield "text", None, tokenizer
    speculator = build_speculator(
        spec, artifact, tokenizer, lambda model: open_beside(backend, model, options)
    )
    with closing(speculator):
        yield "drafted", speculator, tokenizer


def _write(
    tokenizer: Tokenizer,
    backend: Backend,
    speculator: Speculator | None,
    tokens: int,
    repetitions: int,
    progress: Progress,
) -> list[float]:
    """Tokens per second of greedy answers of `tokens` tokens, end tokens ignored; a prompt per repetition."""
    from flatlm.runtime.backends import check_prompt
    from flatlm.runtime.generation.answer import Answer, Prompt
    from flatlm.runtime.generation.scheduler import Scheduler
    from flatlm.runtime.measuring.parity import PROMPTS

    rates = []
    for i in range(repetitions):
        prompt = tokenizer.encode(PROMPTS[i % len(PROMPTS)])
        check_prompt(backend, prompt, more=tokens)
        answer = Answer(Prompt(prompt, SamplingOptions(n=tokens + 1)))
        ids = Scheduler(backend, speculator=speculator).write(answer)
        next(ids)  # has read the prompt
        started = time.perf_counter()
        rates.append(sum(1 for _ in ids) / (time.perf_counter() - started))
        progress(i + 1, repetitions)
    return rates
