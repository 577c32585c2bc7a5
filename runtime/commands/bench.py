"""flatlm bench: speed, in llama-bench's columns."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from flatlm.runtime.commands.common import add_model, model_path, say, warn_of_threads
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
from flatlm.runtime.progress import ProgressLine

if TYPE_CHECKING:
    from flatlm.kernels_arm.probes import Limits, Probe
    from flatlm.runtime.backends import Backend
    from flatlm.runtime.drafting.speculator import Speculator
    from flatlm.runtime.format.artifact import Artifact
    from flatlm.runtime.measuring.bench import Result
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
    output: str = option(
        "md",
        "-o",
        "--output",
        choices=("md", "json", "jsonl", "csv", "sql"),
        help="form of the result; all but md have llama-bench's fields",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if not any((*self.p, *self.n, *self.rows, *self.together, self.steady)):
            raise UsageError("-p 0 and -n 0 leave nothing to measure: give one of them some tokens")


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
    from flatlm.runtime.drafting.spec import open_beside
    from flatlm.runtime.format.artifact import open_artifact
    from flatlm.runtime.measuring.forms import table

    chosen, options = from_args(args, BenchOptions), from_args(args, BackendOptions)
    options = replace(options, batch=max(chosen.together, default=1))
    draft = from_args(args, DraftOptions).draft
    warn_of_threads(options)
    artifact = open_artifact(model_path(args))
    with closing(open_chosen(artifact, options)) as backend:
        bench = Bench(artifact, backend, chosen, getattr(backend, "threads", options.threads))
        bench.speed()
        bench.drafted(draft, lambda model: open_beside(backend, model, options))
        bench.rows()
        bench.steady()
        bench.place()
        if args.per_op:
            bench.per_op()
    print(table(bench.report, chosen.output))
    return 0


class Bench:
    """Measures one model by BenchOptions; what each method finds is added to the report."""

    def __init__(
        self, artifact: Artifact, backend: Backend, chosen: BenchOptions, threads: int | None
    ) -> None:
        from flatlm.runtime.measuring.bench import Report

        self.report = Report()
        self._artifact, self._backend, self._chosen = artifact, backend, chosen
        self._threads, self._began = threads, time.gmtime()
        self._placed: list[tuple[list[Limits], Result, int]] = []  # with the tokens of a step of each

    def _tests(self) -> list[tuple[str, int, int]]:
        """(kind, tokens, depth) of each."""
        return [
            (kind, tokens, depth)
            for depth in self._chosen.d
            for kind, sizes in (("pp", self._chosen.p), ("tg", self._chosen.n))
            for tokens in filter(None, sizes)
        ]

    def _add(self, test: str, rates: list[float]) -> Result:
        from flatlm.runtime.measuring import thermal
        from flatlm.runtime.measuring.bench import Result

        manifest = self._artifact.manifest
        size = sum(entry.size for name, entry in manifest.files.items() if name.startswith("model.onnx"))
        name = self._backend.name
        row = (manifest.name, size, manifest.parameters, name, self._threads, test, tuple(rates))
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", self._began)
        place = (str(self._artifact.path), began, thermal.processor())
        self.report.results.append(result := Result(*row, *place))
        return result

    def speed(self) -> None:
        """Tokens per second, with probes of a native backend's machine around every run."""
        from flatlm.runtime.measuring import bench

        probe = self._probe()
        for kind, tokens, depth in self._tests():
            name = bench.name_of(kind, tokens, depth)
            limits: list[Limits] = []
            between = (lambda found=limits: found.append(probe())) if probe else (lambda: None)
            with ProgressLine(name, "runs") as progress:
                rates = bench.measure(self._backend, kind, tokens, self._chosen.r, progress, depth, between)
            result = self._add(name, rates)
            if probe:
                self._placed.append((limits, result, min(tokens, bench.BATCH) if kind == "pp" else 1))

    def _probe(self) -> Probe | None:
        """What probes the machine with the threads of the native backend; None for another."""
        from flatlm.kernels_arm.probes import Probe
        from flatlm.runtime.backends.native import NativeBackend

        backend = self._backend
        return Probe(backend.kernels, backend.threads) if isinstance(backend, NativeBackend) else None

    def drafted(self, draft: str, open_model: Callable[[Artifact], Backend]) -> None:
        """Text that is written plainly, and drafted as `--draft` says; nothing where it is off."""
        from flatlm.runtime.drafting.spec import build_speculator, parse_draft
        from flatlm.runtime.text.tokenizer import load_tokenizer

        spec = parse_draft(draft)
        if spec is None:
            return
        tokenizer = load_tokenizer(self._artifact.path)
        self._write("text", tokenizer, None)
        with closing(build_speculator(spec, self._artifact, tokenizer, open_model)) as speculator:
            self._write("drafted", tokenizer, speculator)

    def _write(self, name: str, tokenizer: Tokenizer, speculator: Speculator | None) -> None:
        """Greedy answers, end tokens ignored; a prompt per repetition."""
        from flatlm.runtime.backends import check_prompt
        from flatlm.runtime.generation.answer import Answer, Prompt
        from flatlm.runtime.generation.scheduler import Scheduler
        from flatlm.runtime.measuring.parity import PROMPTS

        for tokens in filter(None, self._chosen.n):
            rates = []
            with ProgressLine(f"{name}{tokens}", "runs") as progress:
                for i in range(self._chosen.r):
                    prompt = tokenizer.encode(PROMPTS[i % len(PROMPTS)])
                    check_prompt(self._backend, prompt, more=tokens)
                    answer = Answer(Prompt(prompt, SamplingOptions(n=tokens + 1)))
                    ids = Scheduler(self._backend, speculator=speculator).write(answer)
                    next(ids)  # has read the prompt
                    started = time.perf_counter()
                    rates.append(sum(1 for _ in ids) / (time.perf_counter() - started))
                    progress(i + 1, self._chosen.r)
            self._add(f"{name}{tokens}", rates)

    def rows(self) -> None:
        """What steps of several rows cost, of one sequence and of several."""
        from flatlm.runtime.measuring import rows

        chosen = self._chosen
        for what, sizes in (("rows", chosen.rows), ("sequences", chosen.together)):
            for depth in chosen.d if sizes else ():
                with ProgressLine(what, "rounds") as progress:
                    together = sizes is chosen.together
                    costs = rows.measure(
                        self._backend, sizes, 4 * chosen.r, depth=depth, together=together, progress=progress
                    )
                name = what + (f" @ d{depth}" if depth else "")
                self.report.texts[name] = rows.table(costs, what)
                self.report.extra[name] = [asdict(cost) for cost in costs]

    def steady(self) -> None:
        """Writing for so long that the machine has become warm."""
        from flatlm.runtime.measuring import sustained

        if not self._chosen.steady:
            return
        with ProgressLine("steady state", "s") as progress:
            found = sustained.measure(self._backend, self._chosen.steady, progress)
        self.report.texts["steady"], self.report.extra["steady"] = sustained.describe(found), asdict(found)

    def place(self) -> None:
        """The speeds under their roofs, where these were probed: as JSON, and as a table."""
        from flatlm.runtime.measuring import roofline, thermal

        if not self._placed:
            return
        lines = [
            roofline.place(self._backend, *one)  # type: ignore[arg-type]  # native: it has limits
            for one in self._placed
        ]
        for line in lines:
            self.report.more[line.test] = {"roofline": roofline.as_json(line)}
        self.report.texts["roofline"] = roofline.table(lines)
        if any(line.repetitions[0] < line.repetitions[1] for line in lines):
            say("the machine changed during some repetitions: the table of shares says how many count")
        self.report.texts["machine"] = "\n".join(f"{name}: {fact}" for name, fact in thermal.facts().items())

    def per_op(self) -> None:
        """Where a step's time goes: on stderr, a table for every test; in the JSON, too."""
        from flatlm.kernels_arm import probes
        from flatlm.runtime.backends.native import NativeBackend
        from flatlm.runtime.measuring import bench, per_op

        backend, chosen = self._backend, self._chosen
        if not isinstance(backend, NativeBackend):
            raise UsageError(f"--per-op looks into the native backend, not into {backend.name}")
        for kind, tokens, depth in self._tests() + [("rows", m, d) for d in chosen.d for m in chosen.rows]:
            count = 1 if kind == "tg" else min(tokens, bench.BATCH)
            probe = probes.Probe(backend.kernels, backend.threads)
            before = probe()
            times = per_op.measure(backend, count, depth, logits=count if kind == "rows" else 1)
            limits = probes.mean([before, probe()])
            name = bench.name_of(kind, tokens, depth)
            say(f"{name}, one step of {count} tokens:\n{per_op.table(times, limits)}")
            self.report.more.setdefault(name, {})["per_op"] = [asdict(time) for time in times]
