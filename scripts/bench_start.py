"""From the start of a process to its first token: `flatlm generate` in fresh processes.

    python scripts/bench_start.py models/smollm2-135m-edge -r 7

The first byte on stdout counts, as a person sees it. The kernels must be built and the file be in memory: one
unmeasured run sees to both. With --imports, the modules that took longest to import follow.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

CODE = "import sys; from flatlm.runtime.cli import main; sys.exit(main())"


def first_byte(command: list[str]) -> float:
    """Seconds until the process writes to stdout."""
    started = time.perf_counter()
    nothing = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing) as process:
        assert process.stdout
        if not os.read(process.stdout.fileno(), 1):
            raise SystemExit(f"no output from {command}")
        seconds = time.perf_counter() - started
        process.communicate()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("-r", type=int, default=7, help="processes (default 7)")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--imports", action="store_true", help="what importing costs")
    args = parser.parse_args()
    tail = ["-c", CODE, "generate", args.model, "-p", "What is the capital of France?", "-n", "4"]
    tail += ["-t", str(args.t)]
    times = [first_byte([sys.executable, *tail]) for _ in range(args.r + 1)][1:]
    print(f"{statistics.median(times):.3f} s (median of {args.r}; {min(times):.3f} .. {max(times):.3f})")
    if args.imports:
        done = subprocess.run([sys.executable, "-X", "importtime", *tail], capture_output=True, text=True)
        rows = [
            line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if "|" in line
        ]
        slow = sorted((int(row[0]), row[2].strip()) for row in rows if row[0].strip().isdigit())[-15:]
        for microseconds, name in reversed(slow):
            print(f"{microseconds / 1000:8.1f} ms  {name}")


if __name__ == "__main__":
    main()
