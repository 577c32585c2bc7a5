"""What is left of the speed while another process keeps a core busy: phones are never quiet.

    python scripts/bench_busy.py --artifact edge=models/smollm2-135m-edge --gguf Q4_0=smollm2-Q4_0.gguf

Each round measures every model quietly and beside a process that computes without end, in turns. A ratio is
busy / quiet within a round; its median and extremes are reported. One core of two taken by an equal process
leaves a fair scheduler's share of 3/4 of the machine at best, 1/2 where a step waits for its slower thread.
The machine must be otherwise idle. llama.cpp needs flatlm[bench]; without --gguf it is not asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from flatlm.runtime.backends import open_backend
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.measuring.bench import markdown, measure
from flatlm.runtime.options import BackendOptions
from flatlm.runtime.progress import ProgressLine

SETTLE = 0.3  # s for the scheduler to see the busy process, and for idle threads to sleep


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that only compute."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        time.sleep(SETTLE)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()
        time.sleep(SETTLE)


def arguments() -> argparse.Namespace:
    def named(text: str) -> tuple[str, Path]:
        name, mark, path = text.partition("=")
        if not mark or not Path(path).exists():
            raise argparse.ArgumentTypeError(f"{text!r}: write NAME=PATH, of something that is there")
        return name, Path(path)

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact", type=named, action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--gguf", type=named, action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("-p", type=int, default=256, help="prompt tokens (default 256)")
    parser.add_argument("-n", type=int, default=64, help="tokens to write (default 64)")
    parser.add_argument("-r", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument("-b", type=int, default=1, help="busy processes (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with ExitStack() as stack:
        backends: dict[str, Any] = {}
        for name, path in args.artifact:
            backend: Any = open_backend(
                "native", open_artifact(path), BackendOptions(threads=args.t, ctx=max(args.p, args.n))
            )
            backends[name] = stack.enter_context(closing(backend))
        for name, path in args.gguf:
            from llama_peer import LlamaPeer

            peer = LlamaPeer(path, threads=args.t, context=max(args.p, args.n))
            backends[name] = stack.enter_context(closing(peer))
        rates = run_rounds(backends, {f"pp{args.p}": ("pp", args.p), f"tg{args.n}": ("tg", args.n)}, args)
    print(markdown(["model", "test", "quiet t/s", "busy t/s", "kept"], rows(rates), left=2))
    if args.json:
        found = {"load": os.getloadavg()[0], "busy_processes": args.b, "threads": args.t, "rates": rates}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def run_rounds(
    backends: dict[str, Any], tests: dict[str, tuple[str, int]], args: argparse.Namespace
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Tokens per second: {model: {test: {"quiet": one per round, "busy": …}}}."""
    rates: dict[str, Any] = {m: {t: {"quiet": [], "busy": []} for t in tests} for m in backends}
    with ProgressLine("measuring", "rounds") as progress:
        for i in range(args.r):
            for state in ("quiet", "busy") if i % 2 else ("busy", "quiet"):
                with busy(args.b if state == "busy" else 0):
                    for name, backend in backends.items():
                        for test, (kind, tokens) in tests.items():
                            time.sleep(0.05)  # the other's threads spin some ms after their last work
                            rates[name][test][state] += measure(backend, kind, tokens, 1)
            progress(i + 1, args.r)
    return rates


def rows(rates: dict[str, dict[str, dict[str, list[float]]]]) -> Iterator[list[str]]:
    for name, tests in rates.items():
        for test, found in tests.items():
            kept = [b / q for b, q in zip(found["busy"], found["quiet"], strict=True)]
            medians = (f"{statistics.median(found[state]):.1f}" for state in ("quiet", "busy"))
            yield [name, test, *medians, f"{statistics.median(kept):.2f} ({min(kept):.2f}..{max(kept):.2f})"]


if __name__ == "__main__":
    main()
