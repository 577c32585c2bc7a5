"""Drafting beside plain decoding, prompt by prompt, in turns within one run.

    python scripts/bench_drafting.py models/qwen-1.5b --drafter models/qwen-0.5b --gsm8k test.jsonl \\
        --humaneval HumanEval.jsonl.gz --limit 40 -n 256 -t 2 --json drafting.json --png drafting.png

Tasks: GSM8K's questions, HumanEval's functions, and an edit made of HumanEval's solutions (rewrite this code
with a name changed), whose answer is mostly in its prompt. Each prompt is answered by every arm before the
next one, in an order that turns; a ratio is plain / arm of one prompt, so what else the machine does falls on
both. Arms keep what they learned from one prompt to the next, as programs do; those named in --fresh know
nothing before each, like the first program on a device. The answers of all arms must be the same, token for
token, sampled ones too: differences are counted and are an error.

--gguf adds llama.cpp on the same prompts: plain (its ratio is to flatlm's plain decoding), and with the
prompt lookup of its Python package (its ratio is to its own plain decoding, and its answers may differ).

    ratio    seconds of decoding a token, plain / arm: median, quartiles
    EWIF     the ratio that the formula of speculative decoding predicts from the arm's own acceptance α, mean
             draft k and drafter's cost c in plain steps, (1 − α^(k+1)) / ((1 − α)(1 + k·c)); it takes a pass
             to cost the same whatever its length
    SWI      the paper's measure: tokens / (target passes + drafters' seconds in plain steps), passes alike

Under the table: MB resident after an answer, in a process of its own for each arm: own memory + mapped files
(not with --whole-heads, which programs do not have).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flatlm.runtime.backends import Backend, open_backend
from flatlm.runtime.drafting.cascade import Cascade
from flatlm.runtime.drafting.costs import Costs
from flatlm.runtime.drafting.model import ModelDrafter
from flatlm.runtime.drafting.short_head import with_short_head
from flatlm.runtime.drafting.spec import assemble, build_speculator, parse_draft
from flatlm.runtime.drafting.speculator import DraftTimings, Speculator
from flatlm.runtime.format.artifact import Artifact, open_artifact
from flatlm.runtime.format.nested import is_low
from flatlm.runtime.generation.answer import Answer, Prompt
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.llm import LLM
from flatlm.runtime.measuring.bench import markdown
from flatlm.runtime.options import BackendOptions, SamplingOptions
from flatlm.runtime.progress import ProgressLine
from flatlm.runtime.text import prompt
from flatlm.runtime.text.tokenizer import Tokenizer, load_tokenizer

PLAIN, PEER = "plain", "llama.cpp"
IDLE = 0.5  # load average of the last minute up to which the machine counts as idle


@dataclass(frozen=True)
class Run:
    """One answer of one arm."""

    task: str
    temp: float
    prompt: int
    arm: str
    base: str
    prompt_tokens: int
    tokens: tuple[int, ...]
    prefill_seconds: float
    decode_seconds: float
    drafting: DraftTimings | None


@dataclass(frozen=True)
class Arm:
    """Who writes, who drafts, and the arm that it is compared with."""

    backend: Backend
    draft: str = "off"
    speculator: Speculator | None = None
    base: str = PLAIN
    fresh: bool = False


@dataclass(frozen=True)
class Bench:
    """What every run needs."""

    target: Backend
    tokenizer: Tokenizer
    template: str | None
    arms: dict[str, Arm]
    n: int


def main() -> None:
    args = arguments()
    load = os.getloadavg()[0]
    if load > IDLE:
        print(f"the machine is busy (load {load:.1f}): the ratios will mean little", file=sys.stderr)
    tasks = read_tasks(args)
    with ExitStack() as stack:
        bench = open_bench(args, stack)
        runs = list(measure(bench, tasks, args.temp))
    summary = summarize(runs, list(bench.arms))
    print(table(summary))
    ours = {name: arm.draft for name, arm in bench.arms.items() if not name.startswith(PEER)}
    memory = {} if args.whole_heads else {name: resident(args, draft) for name, draft in ours.items()}
    if memory:
        print(
            "\n" + ", ".join(f"{name} {own:.0f} + {mapped:.0f} MB" for name, (own, mapped) in memory.items())
        )
    result = {
        "machine": {"platform": platform.platform(), "threads": args.t, "load_before": load},
        "model": str(args.model),
        "arms": {name: arm.draft for name, arm in bench.arms.items()},
        "gguf": str(args.gguf) if args.gguf else None,
        "n": args.n,
        "resident_mb": memory,
        "summary": summary,
        "runs": [asdict(run) for run in runs],
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.png:
        draw(summary, args.png)
    differing = sum(entry["differing_answers"] for entry in summary if not entry["arm"].startswith(PEER))
    if differing:
        sys.exit(f"{differing} answers differ from plain decoding: drafting is broken")


def task_parser(description: str | None, limit: int = 40) -> argparse.ArgumentParser:
    """Flags of every script that answers these prompts: of `read_tasks`, the target, and the lengths."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of the target")
    parser.add_argument("--gsm8k", type=Path, metavar="FILE", help='JSON lines with "question"')
    parser.add_argument("--humaneval", type=Path, metavar="FILE", help="HumanEval.jsonl.gz; also the edits")
    parser.add_argument("--tasks", default="gsm8k,humaneval,edit", help="which of these (default all)")
    parser.add_argument("--limit", type=int, default=limit, help=f"prompts of each task (default {limit})")
    parser.add_argument("-n", type=int, default=256, help="most tokens of an answer (default 256)")
    parser.add_argument("-c", type=int, default=1536, help="context; longer prompts are left out")
    return parser


def arguments() -> argparse.Namespace:
    parser = task_parser(__doc__)
    parser.add_argument("--drafter", type=Path, metavar="FOLDER", help="a smaller model of the same family")
    parser.add_argument(
        "--arm", action="append", default=[], metavar="NAME=DRAFT", help="in the place of the usual arms"
    )
    parser.add_argument(
        "--fresh", action="append", default=[], metavar="NAME", help="an arm that learns each answer anew"
    )
    parser.add_argument("--whole-heads", action="store_true", help="drafting models that know all ids")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="llama.cpp's file of the same model")
    parser.add_argument("--temp", default="0,0.7", help="temperatures (default 0,0.7)")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the ratios")
    args = parser.parse_args()
    args.temp = [float(text) for text in args.temp.split(",")]
    return args


def arms_of(args: argparse.Namespace, target: Artifact) -> list[tuple[str, str]]:
    """(name, --draft) of every arm; plain comes first."""
    arms = [(PLAIN, "off")]
    if args.arm:
        return arms + [(name, draft) for name, _, draft in (text.partition("=") for text in args.arm)]
    arms += [("maxgram", "maxgram"), ("maxgram static", "cascade:maxgram")]
    if any(map(is_low, target.graph.nodes)):
        arms += [("nested", "nested"), ("nested cascade", "auto:nested")]
    if args.drafter:
        arms += [
            ("model", str(args.drafter)),
            ("cascade static", f"cascade:{args.drafter},maxgram:llama2"),
            ("auto", f"auto:{args.drafter}"),
        ]
    return arms


# ---- tasks


def read_tasks(args: argparse.Namespace) -> dict[str, list[str]]:
    """{task: user messages}. Evenly spread over the file, so that a limit keeps its mixture."""
    wanted, tasks = args.tasks.split(","), {}
    if args.gsm8k and "gsm8k" in wanted:
        tasks["gsm8k"] = [item["question"] for item in spread(read_lines(args.gsm8k), args.limit)]
    if args.humaneval:
        items = spread(read_lines(args.humaneval), args.limit)
        if "humaneval" in wanted:
            tasks["humaneval"] = [complete(item) for item in items]
        if "edit" in wanted:
            tasks["edit"] = [edit(item) for item in items]
    if not tasks:
        sys.exit("nothing to do: give --gsm8k or --humaneval, and --tasks that they have")
    return tasks


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file, compressed or not."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def spread(items: Sequence[Any], count: int) -> list[Any]:
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def complete(item: dict[str, Any]) -> str:
    return f"Complete this Python function. Answer with the code.\n```python\n{item['prompt']}```"


def edit(item: dict[str, Any]) -> str:
    code, name = item["prompt"] + item["canonical_solution"], item["entry_point"]
    return (
        f"Repeat this Python code with the function `{name}` renamed to `solve_{name}`. Change nothing else. "
        f"Answer with the code only.\n```python\n{code}```"
    )


# ---- measuring


def open_bench(args: argparse.Namespace, stack: ExitStack) -> Bench:
    artifact = open_artifact(args.model)
    tokenizer = load_tokenizer(args.model)
    target = stack.enter_context(closing(open_native(artifact, args)))
    named, arms = arms_of(args, artifact), dict[str, Arm]()
    if unknown := set(args.fresh) - {name for name, _ in named}:
        sys.exit(f"--fresh: there is no arm {', '.join(sorted(unknown))}")
    for name, draft in named:
        spec, speculator = parse_draft(draft), None
        if spec is not None:
            built = build_speculator(spec, artifact, tokenizer, lambda model: open_drafter(model, args))
            speculator = stack.enter_context(closing(built))
        arms[name] = Arm(target, draft, speculator, fresh=name in args.fresh)
    if args.gguf:
        from llama_peer import LlamaPeer, PromptLookup

        peer = stack.enter_context(closing(LlamaPeer(args.gguf, threads=args.t, context=args.c)))
        arms[PEER] = Arm(peer)
        lookup = PromptLookup()
        arms[f"{PEER} lookup"] = Arm(
            peer, "lookup", Speculator(Cascade([lookup], ((10,),), 1.0), [lookup]), PEER
        )
    return Bench(target, tokenizer, prompt.load_template(args.model), arms, args.n)


def open_native(artifact: Artifact, args: argparse.Namespace) -> Backend:
    context = min(args.c, artifact.manifest.context_length)
    return open_backend("native", artifact, BackendOptions(threads=args.t, ctx=context))


def open_drafter(artifact: Artifact, args: argparse.Namespace) -> Backend:
    if args.whole_heads:
        return open_native(artifact, args)
    return with_short_head(artifact, lambda short: open_native(short, args))


def measure(bench: Bench, tasks: dict[str, list[str]], temps: Sequence[float]) -> Iterator[Run]:
    """All runs; a prompt that does not fit with its answer is left out and said."""
    order, total, done = list(bench.arms), sum(map(len, tasks.values())) * len(temps), 0
    with ProgressLine("measuring", "prompts") as progress:
        for task, messages in tasks.items():
            for temp in temps:
                for number, message in enumerate(messages):
                    ids = encode(bench.tokenizer, bench.template, message)
                    if len(ids) + bench.n > bench.target.context:
                        print(f"{task} {number}: {len(ids)} tokens do not fit, left out", file=sys.stderr)
                    else:
                        for arm in order:
                            yield run(
                                bench, arm, ids, SamplingOptions(temp=temp, seed=number), (task, number)
                            )
                    order = order[1:] + order[:1]
                    done += 1
                    progress(done, total)


def encode(tokenizer: Tokenizer, template: str | None, message: str) -> list[int]:
    if template is None:
        return tokenizer.encode(message)
    text = prompt.render(template, [{"role": "user", "content": message}], special=tokenizer.special)
    return tokenizer.encode(text, special=False)


def run(bench: Bench, arm: str, ids: list[int], options: SamplingOptions, place: tuple[str, int]) -> Run:
    """One answer, from an empty context."""
    chosen = bench.arms[arm]
    speculator = begun_anew(chosen) if chosen.fresh else chosen.speculator
    answer = Answer(Prompt(ids, replace(options, n=bench.n)), bench.tokenizer.eos_ids)
    written = Scheduler(chosen.backend, speculator=speculator).write(answer)
    started = time.perf_counter()
    tokens = [next(written)]
    first = time.perf_counter()
    tokens += written
    ended = time.perf_counter()
    return Run(
        task=place[0],
        temp=options.temp,
        prompt=place[1],
        arm=arm,
        base=chosen.base,
        prompt_tokens=len(ids),
        tokens=tuple(tokens),
        prefill_seconds=first - started,
        decode_seconds=ended - first,
        drafting=answer.timings.drafting,
    )


def begun_anew(arm: Arm) -> Speculator | None:
    """The arm's drafters, with nothing known of costs and chances."""
    spec = parse_draft(arm.draft)
    if spec is None or arm.speculator is None:
        return arm.speculator
    for leaf in arm.speculator.leaves:
        if isinstance(leaf, ModelDrafter):
            leaf.costs = Costs()
    return assemble(arm.speculator.leaves, spec)


def resident(args: argparse.Namespace, draft: str) -> list[float]:
    """MB of own memory and of mapped files, after an answer in a new process. Linux."""
    options = {"ctx": args.c, "threads": args.t, "draft": draft}
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_resident, str(args.model), options).result()


def _resident(model: str, options: dict[str, Any]) -> list[float]:
    with nothing_kept(), LLM(model, **options) as llm:
        llm.chat([{"role": "user", "content": "Count from one to fifty in words."}], n=64)
        lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return [int(found[name].split()[0]) * 1024 / 1e6 for name in ("RssAnon", "RssFile")]


def nothing_kept() -> AbstractContextManager[Any]:
    """In this process drafting begins with nothing that another learned, and leaves nothing behind."""
    return patch("flatlm.runtime.drafting.kept.default_folder", return_value=None)


# ---- what comes out


def summarize(runs: Sequence[Run], arms: Sequence[str]) -> list[dict[str, Any]]:
    """One entry for each task, temperature and arm but plain, in this order."""
    every = {(r.task, r.temp, r.prompt, r.arm): r for r in runs}
    groups: dict[tuple[str, float, str], list[tuple[Run, Run]]] = {}
    for one in runs:
        base = every[one.task, one.temp, one.prompt, one.base]
        if one.arm != PLAIN and min(len(one.tokens), len(base.tokens)) > 1:
            groups.setdefault((one.task, one.temp, one.arm), []).append((base, one))
    tasks = list(dict.fromkeys(one.task for one in runs))
    in_order = sorted(groups.items(), key=lambda g: (tasks.index(g[0][0]), g[0][1], arms.index(g[0][2])))
    return [
        {"task": task, "temp": temp, "arm": arm, **facts(*zip(*found, strict=True))}
        for (task, temp, arm), found in in_order
    ]


def facts(plain: Sequence[Run], runs: Sequence[Run]) -> dict[str, Any]:
    ratios = [pace(p) / pace(r) for p, r in zip(plain, runs, strict=True)]
    drafts = [r.drafting for r in runs if r.drafting is not None]
    written, passes = sum(d.written for d in drafts), sum(d.target_passes for d in drafts)
    drafted, accepted = sum(d.drafted for d in drafts), sum(d.accepted for d in drafts)
    judged = accepted + sum(d.rejections for d in drafts)
    seconds = sum(r.decode_seconds for r in runs)
    row = sum(p.decode_seconds for p in plain) / sum(len(p.tokens) - 1 for p in plain)  # s a plain token
    same = [(p, r) for p, r in zip(plain, runs, strict=True) if p.tokens == r.tokens]
    models: dict[str, list[float]] = {}
    for source in (source for d in drafts for source in d.sources if source.passes):
        at = models.setdefault(source.name, [0, 0.0])
        at[0], at[1] = at[0] + source.passes, at[1] + source.seconds
    in_drafters = sum(d.draft_seconds for d in drafts) / row  # plain steps
    return {
        "prompts": len(runs),
        "ratio": statistics.median(ratios),
        "quartiles": statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else ratios * 2,
        "extremes": [min(ratios), max(ratios)],
        "ratio_of_totals": row * sum(len(r.tokens) - 1 for r in runs) / seconds,
        "ratio_with_prefill": sum(p.prefill_seconds + p.decode_seconds for p, _ in same)
        / sum(r.prefill_seconds + r.decode_seconds for _, r in same)
        if same
        else None,
        "acceptance": accepted / drafted if drafted else 0.0,
        "ewif": ewif(accepted / judged, drafted / passes, in_drafters / drafted) if drafted else 1.0,
        "tokens_per_pass": written / passes if passes else 0.0,
        "swi": written / (passes + sum(s for _, s in models.values()) / row) if passes else 1.0,
        "bookkeeping": sum(d.bookkeeping_seconds for d in drafts) / seconds,
        "drafter_seconds": {name: s for name, (_, s) in models.items()},
        "drafter_passes": {name: count for name, (count, _) in models.items()},
        "differing_answers": len(runs) - len(same),
    }


def pace(run: Run) -> float:
    """Seconds a decoded token."""
    return run.decode_seconds / (len(run.tokens) - 1)


def ewif(alpha: float, k: float, c: float) -> float:
    """Expected walltime improvement of drafts of k tokens, each right with chance alpha, at c plain steps."""
    tokens = k + 1 if alpha == 1 else (1 - alpha ** (k + 1)) / (1 - alpha)
    return tokens / (1 + k * c)


def table(summary: Sequence[dict[str, Any]]) -> str:
    head = [
        "task",
        "T",
        "arm",
        "ratio",
        "quartiles",
        "accepted",
        "tokens/pass",
        "EWIF",
        "SWI",
        "book",
        "differ",
    ]
    return markdown(head, map(cells, summary), left=3)


def cells(e: dict[str, Any]) -> list[str]:
    """A line of the table; an arm that drafts nothing has no numbers of drafting."""
    drafted = [
        f"{e['acceptance']:.0%}",
        f"{e['tokens_per_pass']:.2f}",
        f"{e['ewif']:.2f}",
        f"{e['swi']:.2f}",
        f"{e['bookkeeping']:.1%}",
    ]
    return [
        e["task"],
        f"{e['temp']:g}",
        e["arm"],
        f"{e['ratio']:.2f}",
        " … ".join(f"{q:.2f}" for q in e["quartiles"]),
        *(drafted if e["tokens_per_pass"] else ["-"] * len(drafted)),
        f"{e['differing_answers']}/{e['prompts']}",
    ]


def draw(summary: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel a task and temperature, one bar an arm (median) with its quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = list(dict.fromkeys((e["task"], e["temp"]) for e in summary))
    arms = list(dict.fromkeys(e["arm"] for e in summary))
    figure, panels = pyplot.subplots(
        1, len(places), figsize=(2.6 * len(places), 3.4), squeeze=False, sharey=True, layout="constrained"
    )
    for panel, place in zip(panels[0], places, strict=True):
        for entry in (e for e in summary if (e["task"], e["temp"]) == place):
            i = arms.index(entry["arm"])
            low, high = entry["quartiles"]
            error = [[max(entry["ratio"] - low, 0)], [max(high - entry["ratio"], 0)]]
            panel.bar(i, entry["ratio"], yerr=error, color=f"C{i}", label=entry["arm"], capsize=2)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set_title(f"{place[0]}, T = {place[1]:g}", fontsize=9)
        panel.set_xticks([])
    panels[0][0].set_ylabel("times plain decoding")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
