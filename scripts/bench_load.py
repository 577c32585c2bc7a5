"""What opening a backend costs: seconds, resident memory beside the file's size, a step's processor time.

    python scripts/bench_load.py models/smollm2-135m-edge --backend native ort ort-file -r 3

Each in processes of its own, on one thread, the least of the runs. On a busy machine processor seconds say
more than the clock's, which stand beside them. Linux only: memory is asked of /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

STEPS = 16


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--backend", nargs="+", default=["native", "ort", "ort-file"])
    parser.add_argument("-r", type=int, default=3, help="processes of each (default 3)")
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # the child: it opens this backend
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(measured(args.model, args.inside)))
        return 0
    size = sum(path.stat().st_size for path in args.model.glob("model.onnx*")) / 1e6
    print(f"{args.model.name}: {size:.0f} MB\n")
    print("| backend | load, CPU s | load, s | resident MB | ÷ file | peak MB | step, CPU ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for backend in args.backend:
        runs = [child(args.model, backend) for _ in range(args.r)]
        best = {name: min(run[name] for run in runs) for name in runs[0]}
        print(
            f"| {backend} | {best['cpu']:.2f} | {best['seconds']:.2f} | {best['resident']:.0f} "
            f"| {best['resident'] / size:.1f} | {best['peak']:.0f} | {1e3 * best['step']:.1f} |"
        )
    return 0


def child(model: Path, backend: str) -> dict[str, float]:
    command = [sys.executable, __file__, str(model), "--inside", backend]
    path = os.pathsep.join((str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measured(model: Path, backend: str) -> dict[str, float]:
    """Of this process."""
    import numpy as np

    from flatlm.runtime.backends import open_backend
    from flatlm.runtime.format.artifact import open_artifact
    from flatlm.runtime.options import BackendOptions

    began, busy = time.perf_counter(), time.process_time()
    opened = open_backend(backend, open_artifact(model), BackendOptions(threads=1, ctx=256))
    found = {"cpu": time.process_time() - busy, "seconds": time.perf_counter() - began}
    steps = []
    for number in range(STEPS):
        busy = time.process_time()
        opened.forward(np.array([number + 1]))
        steps.append(time.process_time() - busy)
    found["step"] = min(steps)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    for name, field in (("resident", "VmRSS"), ("peak", "VmHWM")):
        found[name] = int(status[field].split()[0]) / 1e3
    return found


if __name__ == "__main__":
    sys.exit(main())
