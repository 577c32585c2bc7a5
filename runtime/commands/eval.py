"""flatlm eval: quality of a model, on tasks with answers or on a text."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatlm.runtime.commands.common import (
    add_json,
    add_model,
    open_llm,
    print_json,
    read_text,
    say,
)
from flatlm.runtime.errors import ResourceError, UsageError
from flatlm.runtime.options import (
    BackendOptions,
    DraftOptions,
    PromptOptions,
    SamplingOptions,
    add_flags,
    check_fields,
    did_you_mean,
    from_args,
    option,
    refuse,
)
from flatlm.runtime.progress import ProgressLine

if TYPE_CHECKING:
    from flatlm.runtime.evaluation.runner import Asking
    from flatlm.runtime.evaluation.tasks import Task
    from flatlm.runtime.llm import LLM

MOST_TOGETHER = 16  # docs/log/several-sequences.md: little is gained beyond, and each takes a K/V cache

# Options of sampling that the files of all runs name; later ones only where they were chosen.
NAMED = ("n", "temp", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "seed", "stop")

MEASURES = ("gsm8k", "svamp", "aqua", "humaneval", "ppl", "kl")


@dataclass(frozen=True)
class TextOptions:
    """ppl and kl: what text is read, and against what."""

    text: str | None = option(None, "--text", metavar="FILE", help="the text, - for stdin")
    tokens: int | None = option(
        None, "--tokens", low=2, high=2**40, help="use the text's first N tokens; default: all"
    )
    window: int = option(512, "--window", low=2, high=2**20, help="tokens of a window, each read on its own")
    reference: str | None = option(
        None, "--reference", metavar="MODEL", help="kl: the model whose predictions are the measure"
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class TaskOptions:
    """The tasks: what is asked, and where the answers are kept."""

    file: str | None = option(
        None, "--file", metavar="FILE", help="the task's file, as its authors publish it; a path or hub:…"
    )
    out: str | None = option(
        None, "--out", metavar="FILE", help="the run, a line per item; one that exists is continued"
    )
    limit: int | None = option(None, "--limit", low=1, high=2**31, help="the first N items; default: all")
    samples: int = option(1, "--samples", low=1, high=1000, help="answers per item that vote; needs --temp")
    shots: int = option(0, "--shots", low=0, high=100, help="worked examples in the prompt")
    shots_file: str | None = option(
        None, "--shots-file", metavar="FILE", help="where the examples come from: its first items"
    )
    allow_code_execution: bool = option(
        False, "--allow-code-execution", help="humaneval: run programs that the model wrote"
    )
    batch: int | None = option(
        None,
        "--batch",
        low=1,
        high=512,
        help=f"answers written side by side; default: {MOST_TOGETHER} or what memory holds",
    )

    def __post_init__(self) -> None:
        check_fields(self)


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.set_defaults(run=run)
    parser.description = (
        "Tasks (gsm8k, svamp, aqua, humaneval): the share of right answers. ppl: perplexity over fixed "
        "windows without a begin token. kl: how far predictions are from those of a reference."
    )
    add_model(parser)
    parser.add_argument("measure", metavar="MEASURE", help=", ".join(MEASURES))
    add_json(parser)
    parser.add_argument(
        "--show-prompt", action="store_true", help="print on stderr what the model is sent for the first item"
    )
    for options in (TaskOptions, PromptOptions, SamplingOptions, TextOptions, BackendOptions, DraftOptions):
        add_flags(parser, options)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.measure not in MEASURES:
        raise UsageError(f"unknown measure {args.measure!r}{did_you_mean(args.measure, MEASURES)}")
    tasks_only = (TaskOptions, PromptOptions, SamplingOptions, DraftOptions)
    refuse(args, f"eval {args.measure}", *(tasks_only if args.measure in ("ppl", "kl") else (TextOptions,)))
    return {"ppl": _perplexity, "kl": _divergence}.get(args.measure, _task)(args)


def _perplexity(args: argparse.Namespace) -> int:
    """Print the perplexity, the predicted tokens and the mean −ln p with its standard error."""
    from flatlm.runtime.evaluation.perplexity import perplexity

    options = from_args(args, TextOptions)
    text = _text(options)
    with open_llm(args) as llm, ProgressLine("perplexity", "windows") as progress:
        result = perplexity(llm.backend, _ids(llm, text, options), options.window, progress)
        backend = llm.backend.name
    if args.json:
        print_json({**asdict(result), "window": options.window, "backend": backend})
    else:
        print(f"perplexity {result.perplexity:.4f}  ({result.tokens} tokens in {result.windows} windows)")
        print(f"nll {result.nll:.5f} ± {result.nll_error:.5f}")
    return 0


def _divergence(args: argparse.Namespace) -> int:
    """Print KL(reference ‖ model), its percentiles, and how often the likeliest token is the same."""
    from flatlm.runtime.evaluation.divergence import divergence
    from flatlm.runtime.llm import LLM

    options = from_args(args, TextOptions)
    if options.reference is None:
        raise UsageError("kl compares with another model: give --reference MODEL")
    text = _text(options)
    with (
        open_llm(args) as llm,
        LLM(options.reference, from_args(args, BackendOptions)) as reference,
        ProgressLine("divergence", "windows") as progress,
    ):
        ids = _ids(llm, text, options)
        if ids != _ids(reference, text, options):
            raise UsageError("the models split the text into different tokens: they cannot be compared")
        result = divergence(reference.backend, llm.backend, ids, options.window, progress)
        backend = llm.backend.name
    if args.json:
        print_json({**asdict(result), "window": options.window, "backend": backend})
        return 0
    print(f"KL mean {result.mean:.6f} ± {result.mean_error:.6f}, median {result.median:.6f}")
    print(f"KL 90 % {result.p90:.6f}, 99 % {result.p99:.6f}, max {result.maximum:.6f}")
    print(f"same likeliest token {100 * result.top1_agreement:.3f} %")
    print(f"perplexity {result.perplexity:.4f}, of the reference {result.reference_perplexity:.4f}")
    print(f"({result.tokens} tokens in {result.windows} windows)")
    return 0


def _text(options: TextOptions) -> str:
    if options.text is None:
        raise UsageError("give the text: --text FILE")
    return read_text(options.text)


def _ids(llm: LLM, text: str, options: TextOptions) -> list[int]:
    return llm.tokenizer.encode(text, special=False)[: options.tokens]


def _task(args: argparse.Namespace) -> int:
    """Answer the items of a task's file, continuing the run in --out, and print what it says."""
    from flatlm.runtime.evaluation import runner, summary
    from flatlm.runtime.evaluation.answerer import answerer, prompt_of
    from flatlm.runtime.evaluation.run_file import RunFile
    from flatlm.runtime.evaluation.tasks import TASKS, read_items

    chosen = _Chosen.of(args, TASKS[args.measure])
    task, sampling, out = chosen.task, chosen.sampling, chosen.out()
    chosen = chosen.fetched()
    items = read_items(task, chosen.file, chosen.options.limit)
    with _open_for(args, chosen.options) as llm, ProgressLine(task.name, "items") as progress:
        asking = chosen.asking(chat=llm.template is not None)
        with RunFile(out, chosen.settings(llm, asking)) as run_file:
            if run_file.records:
                say(f"{out} has {len(run_file.records)} items already")
            if args.show_prompt:
                first = prompt_of(llm, runner.request(task, items[0], asking), sampling)
                say(llm.tokenizer.decode(first.ids, skip_special=False))
            records = runner.run(task, items, asking, answerer(llm, sampling), run_file, progress)
    figures = summary.summarize(records)
    if args.json:
        print_json({"task": task.name, "out": str(out), **figures})
    else:
        print("\n".join(summary.lines(figures)))
    return 0


def _open_for(args: argparse.Namespace, options: TaskOptions) -> LLM:
    """The model, with as many sequences as are to be written side by side."""
    if options.batch is not None:
        return open_llm(args, options.batch)
    together = MOST_TOGETHER
    while True:
        try:
            return open_llm(args, together)
        except ResourceError:
            if together == 1:
                raise
            together //= 2


@dataclass(frozen=True)
class _Chosen:
    """All that was chosen for the run of a task."""

    task: Task
    options: TaskOptions
    prompt: PromptOptions
    sampling: SamplingOptions
    draft: DraftOptions

    @classmethod
    def of(cls, args: argparse.Namespace, task: Task) -> _Chosen:
        """What the flags say; the seed is always a number, so that a run can be continued."""
        sampling = from_args(args, SamplingOptions)
        sampling = replace(sampling, seed=max(sampling.seed, 0))
        options, prompt = from_args(args, TaskOptions), from_args(args, PromptOptions)
        return cls(task, options, prompt, sampling, from_args(args, DraftOptions))

    def out(self) -> Path:
        """The run's file. UsageError for what cannot work, before anything is fetched or loaded."""
        name, options, program = self.task.name, self.options, self.task.kind == "program"
        if options.file is None or options.out is None:
            raise UsageError(f"{name} needs --file FILE (the task) and --out FILE (the run that is kept)")
        if program and not options.allow_code_execution:
            raise UsageError(
                f"{name} runs programs that the model wrote, in a limited process of their own; "
                "--allow-code-execution permits it. docs/evaluation.md says what is limited"
            )
        if program and (options.samples > 1 or options.shots):
            raise UsageError(f"{name} has no votes and no worked examples: leave --samples and --shots out")
        if options.samples > 1 and self.sampling.temp == 0:
            raise UsageError("--samples needs --temp: at temperature 0 all answers are the same")
        if (options.shots > 0) != (options.shots_file is not None):
            raise UsageError("--shots N and --shots-file FILE go together")
        return Path(options.out)

    def fetched(self) -> _Chosen:
        """The same, with files that are here: those of `hub:…` are fetched."""
        from flatlm.runtime.evaluation.hub_file import local

        file, shots = local(str(self.options.file)), self.options.shots_file
        local_shots = str(local(shots)) if shots else shots
        return replace(self, options=replace(self.options, file=str(file), shots_file=local_shots))

    @property
    def file(self) -> Path:
        return Path(str(self.options.file))

    def asking(self, chat: bool) -> Asking:
        """How the items are put to a model, `chat` where it has a chat template."""
        from flatlm.runtime.evaluation.runner import Asking
        from flatlm.runtime.evaluation.tasks import exemplars_of

        task, options = self.task, self.options
        if task.kind == "program" and not chat and self.prompt != PromptOptions():
            raise UsageError(
                f"a model without a chat template continues the functions of {task.name} as they are: leave "
                "--re2 and --prompt-style out"
            )
        shown = exemplars_of(task, Path(options.shots_file), options.shots) if options.shots_file else []
        return Asking(self.prompt, tuple(shown), chat, options.samples, self.sampling.seed)

    def settings(self, llm: LLM, asking: Asking) -> dict[str, Any]:
        """All that a result depends on, and no more: --limit and -t may change when a run goes on."""
        from flatlm.runtime.evaluation.tasks import fingerprint

        assert llm.artifact is not None, "the model was opened from a folder"
        manifest, options = llm.artifact.manifest, self.options
        hashes = json.dumps({name: entry.sha256 for name, entry in sorted(manifest.files.items())})
        return {
            "task": self.task.name,
            "file_sha256": fingerprint(self.file),
            "model": f"{manifest.name} {manifest.recipe}",
            "model_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
            "backend": llm.backend.name,
            "chat": asking.chat,
            "prompt_style": self.prompt.prompt_style,
            "reads": self.prompt.reads if self.prompt.re2 else 1,
            "shots": options.shots,
            "shots_sha256": fingerprint(Path(options.shots_file)) if options.shots_file else None,
            "samples": options.samples,
            **_chosen_of(self.sampling),
            **asdict(self.draft),
        }


def _chosen_of(sampling: SamplingOptions) -> dict[str, Any]:
    """Its options by name: see NAMED."""
    default, named = SamplingOptions(), asdict(sampling)
    return {name: value for name, value in named.items() if name in NAMED or value != getattr(default, name)}
