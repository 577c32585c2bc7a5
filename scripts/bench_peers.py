"""flatlm beside llama.cpp and onnxruntime, in turns within one run: what else the machine does falls on all.

    python scripts/bench_peers.py --artifact edge=models/smollm2-135m-edge --gguf Q4_0=smollm2-Q4_0.gguf \\
        -p 512 -n 128 -r 7 -t 2 --json peers.json --png peers.png

pp: one forward pass over p random ids. tg: n forward passes over one id each, from an empty context;
nothing is sampled. The models take turns of one prompt or 16 tokens, with a probe of the machine around
every turn: a ratio is that of two turns during which the machine was the same (peer_rounds.py); median
and quartiles over all of them are reported, and medians by the machine's state. stdout has the tables in
Markdown. Needs flatlm[export,bench].

The machine must be idle: with other work on its cores llama.cpp's threads, which meet at barriers, lose far
more than flatlm's do (ratios of 4 to 9 were seen that mean nothing). A warning says so, the load is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import peer_rounds
from peer_rounds import compare, run_rounds

from flatlm.kernels_arm import library
from flatlm.kernels_arm.cpu import choose
from flatlm.kernels_arm.probes import Probe
from flatlm.runtime.backends import open_backend
from flatlm.runtime.backends.ort_session import import_onnxruntime
from flatlm.runtime.evaluation.perplexity import perplexity
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.measuring.bench import markdown
from flatlm.runtime.options import BackendOptions
from flatlm.runtime.progress import ProgressLine
from flatlm.runtime.text.tokenizer import load_tokenizer

WINDOW = 512
COLOURS = {"flatlm": "tab:green", "llama.cpp": "tab:gray", "onnxruntime": "tab:blue"}
IDLE = 0.5  # load average of the last minute up to which the machine counts as idle


def main() -> None:
    args = arguments()
    load = os.getloadavg()[0]
    if load > IDLE:
        print(f"the machine is busy (load {load:.1f}): the ratios will mean little", file=sys.stderr)
    with ExitStack() as stack:
        ours = {name: stack.enter_context(Ours(path, args)) for name, path in args.artifact}
        peers = {name: stack.enter_context(Peer(llama(path, args), "llama.cpp")) for name, path in args.gguf}
        peers |= {
            name: stack.enter_context(Peer(onnx(path, args), "onnxruntime")) for name, path in args.onnx
        }
        sides: dict[str, Any] = ours | peers
        tests = {f"pp{args.p}": ("pp", args.p), f"tg{args.n}": ("tg", args.n)}
        turns = run_rounds(sides, {k: v for k, v in tests.items() if v[1]}, args.r, probe_of(args.t))
        rates, top = peer_rounds.rates(turns), peer_rounds.highest(turns)
        pairs = [(mine, other) for mine in ours for other in peers]
        result = {
            "machine": machine(args) | {"load_before": load},
            "models": {name: side.facts for name, side in sides.items()},
            "rates": rates,
            "probe": asdict(top),
            "ratios": {
                f"{mine}/{other}": {
                    test: compare(turns[mine][test], turns[other][test], top) for test in turns[mine]
                }
                for mine, other in pairs
            },
        }
        print(speed_table(result))
        if pairs:
            print("\n" + ratio_table(result) + "\n\n" + state_table(result))
        if args.perplexity:
            result["perplexity"] = perplexities(sides, args)
            print("\n" + perplexity_table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.png:
        draw(result, args.png)


def arguments() -> argparse.Namespace:
    def named(text: str) -> tuple[str, Path]:
        name, mark, path = text.partition("=")
        if not mark:
            raise argparse.ArgumentTypeError(f"{text!r}: write NAME=PATH")
        if not Path(path).exists():
            raise argparse.ArgumentTypeError(f"{path} is not there")
        return name, Path(path)

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact", type=named, action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--gguf", type=named, action="append", default=[], metavar="NAME=FILE")
    parser.add_argument(
        "--onnx",
        type=named,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="of make_matmulnbits.py",
    )
    parser.add_argument("-p", type=int, default=512, help="prompt tokens; 0: no (default 512)")
    parser.add_argument("-n", type=int, default=128, help="tokens to write; 0: no (default 128)")
    parser.add_argument("-r", type=int, default=7, help="rounds (default 7)")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument(
        "--perplexity", type=Path, metavar="TEXT", help=f"also on this text, windows of {WINDOW}"
    )
    parser.add_argument("--tokens", type=int, default=20480, help="of the text (default 20480)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the speeds")
    args = parser.parse_args()
    names = [name for name, _ in args.artifact + args.gguf + args.onnx]
    if not names or len(set(names)) != len(names):
        parser.error("give at least one --artifact, --gguf or --onnx, each with a name of its own")
    return args


def context(args: argparse.Namespace) -> int:
    return max(args.p, args.n, WINDOW)


class Ours:
    """An artifact on the native backend."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        artifact = open_artifact(folder)
        self.backend = open_backend("native", artifact, BackendOptions(threads=args.t, ctx=context(args)))
        self._folder = folder
        size = sum(
            entry.size for name, entry in artifact.manifest.files.items() if name.startswith("model.onnx")
        )
        self.facts = {"engine": "flatlm", "recipe": artifact.manifest.recipe, "bytes": size}

    def encode(self, text: str) -> np.ndarray:
        return np.array(load_tokenizer(self._folder).encode(text, special=False), np.int64)

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *_: object) -> None:
        self.backend.close()


def llama(path: Path, args: argparse.Namespace) -> Any:
    from llama_peer import LlamaPeer

    return LlamaPeer(path, threads=args.t, context=context(args))


def onnx(path: Path, args: argparse.Namespace) -> Any:
    from onnx_peer import OnnxPeer

    return OnnxPeer(path, threads=args.t, context=context(args))


class Peer:
    """A file on another engine."""

    def __init__(self, backend: Any, engine: str) -> None:
        self.backend, self.encode = backend, backend.encode
        self.facts = {"engine": engine, "bytes": backend.bytes}

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.backend.close()


def probe_of(threads: int) -> Probe:
    tier = choose().tier
    if tier is None:
        raise SystemExit("no kernels for this processor: nothing to probe it with")
    return Probe(library.load(tier), threads)


def perplexities(sides: dict[str, Any], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Each model on the same ids: those of the first model's tokenizer. Says where another's differ."""
    text = args.perplexity.read_text(encoding="utf-8")
    first, results = next(iter(sides)), {}
    ids = sides[first].encode(text)[: args.tokens]
    for name, side in sides.items():
        theirs = side.encode(text)[: args.tokens]
        differing = len(ids) if len(theirs) != len(ids) else int((theirs != ids).sum())
        if differing:
            print(
                f"{name} would tokenize {differing} places otherwise; it reads {first}'s ids", file=sys.stderr
            )
        with ProgressLine(f"perplexity of {name}", "windows") as progress:
            found = perplexity(side.backend, ids.tolist(), WINDOW, progress)
        results[name] = {"perplexity": found.perplexity, "nll": found.nll, "nll_error": found.nll_error}
    return results


def machine(args: argparse.Namespace) -> dict[str, Any]:
    tier = choose().tier
    facts = {
        "platform": platform.platform(),
        "processor": processor(),
        "threads": args.t,
        "flatlm_kernels": tier.name if tier else None,
    }
    if args.gguf:
        import llama_cpp

        facts["llama_cpp_python"] = llama_cpp.__version__
        facts["llama_cpp"] = llama_cpp.llama_print_system_info().decode().strip(" |")
    if args.onnx:
        facts["onnxruntime"] = import_onnxruntime().__version__
    return facts


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )


def speed_table(result: dict[str, Any]) -> str:
    tests = list(next(iter(result["rates"].values())))
    rows = []
    for name, rates in result["rates"].items():
        facts = result["models"][name]
        cells = [
            f"{statistics.median(rates[t]):.1f} ({min(rates[t]):.1f}..{max(rates[t]):.1f})" for t in tests
        ]
        rows.append([name, facts["engine"], f"{facts['bytes'] / 2**20:.1f} MiB", *cells])
    return markdown(["model", "engine", "size", *(f"{test} t/s" for test in tests)], rows, left=2)


def ratio_table(result: dict[str, Any]) -> str:
    tests = list(next(iter(result["ratios"].values())))
    rows = [
        [pair, *(f"{found[t]['median']:.3f} ({found[t]['low']:.3f}..{found[t]['high']:.3f})" for t in tests)]
        for pair, found in result["ratios"].items()
    ]
    return markdown(["ratio (quartiles)", *tests], rows, left=1)


def state_table(result: dict[str, Any]) -> str:
    """The ratios by the machine's state, with the rates and the probe of it."""
    rows = [
        [pair, test, state, f"{found['median']:.3f}", f"{found['mine']:.1f}", f"{found['other']:.1f}",
         f"{found['like']}", f"{found['probe']['read'] / 1e9:.0f}",
         f"{2 * found['probe']['multiplications'] / 1e9:.0f}"]
        for pair, tests in result["ratios"].items() for test, of in tests.items()
        for state, found in of["states"].items()
    ]  # fmt: skip
    head = ["ratio", "test", "the machine", "median", "t/s", "other's", "turns", "GB/s", "GOP/s"]
    return markdown(head, rows, left=3)


def perplexity_table(result: dict[str, Any]) -> str:
    rows = [
        [name, f"{found['perplexity']:.3f}", f"{found['nll']:.4f} ± {found['nll_error']:.4f}"]
        for name, found in result["perplexity"].items()
    ]
    return markdown(["model", "perplexity", "nll"], rows, left=1)


def draw(result: dict[str, Any], path: Path) -> None:
    """One panel a test, one bar a model (median) with a dot per round."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rates = result["rates"]
    tests = list(next(iter(rates.values())))
    figure, panels = pyplot.subplots(1, len(tests), figsize=(4.5 * len(tests), 3.5), squeeze=False)
    for panel, test in zip(panels[0], tests, strict=True):
        for i, (name, found) in enumerate(rates.items()):
            colour = COLOURS[result["models"][name]["engine"]]
            panel.bar(i, statistics.median(found[test]), color=colour, alpha=0.7)
            panel.plot([i] * len(found[test]), found[test], "k.", markersize=4)
        panel.set_xticks(range(len(rates)), list(rates), rotation=20)
        panel.set_title(f"{test}, tokens per second")
    figure.suptitle(f"{result['machine']['processor']}, {result['machine']['threads']} threads", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
