"""Instructions that flatlm, llama.cpp and onnxruntime execute on ARM; scripts/arm/peers prepares and runs it.

A count is the difference of two runs that differ only in how often something is done, so that starting and
loading cancel out. Per model: a prompt read once more (per prompt token), and 16 tokens more, fed one by one
after it (per generated token). Per product: m rows of float32 by a 4-bit matrix, float32 out, once more. One
thread each. stdout has the tables in Markdown. Instructions are not time: neither pipelines nor caches nor
memory are modelled.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CPUS = {"cortex-a76": "dotprod", "max": "i8mm"}  # emulated processor: the build of llama.cpp for it
PARTS = {"cortex-a76": ("0xd0b", ""), "max": ("0xd4d", " i8mm bf16")}  # what /proc/cpuinfo says of them
PROMPT, TOKENS, MORE_TOKENS = 128, 4, 20
SHAPES = ((576, 1536), (1536, 8960))  # n, k: SmolLM2-135M's and Qwen2.5-1.5B's last product of a layer
ROWS = (1, 128)
MACS = (
    3e9  # multiply-accumulates that two runs of a product differ by, so that what varies at a start is little
)
GGUF = r"I?Q\d_\w+"  # names of GGUF files in a JSON file of counts
STARTS = {"onnxruntime": 3}  # runs of which the cheapest counts: its start varies by 48 M instructions
GOAL = 0.85

Counts = dict[str, float]  # instructions by class, as count.c names them, and "total"


def main() -> int:
    args = arguments()
    os.environ |= {
        "PYTHONHASHSEED": "0",
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (args.tree / "device", args.tree / "peers" / "onnxruntime"))),
    }
    os.environ |= {"FLATLM_ARM": str(args.tree), "FLATLM_CACHE": str(args.tree / "cache")}
    result: dict[str, Any] = {"models": {}, "products": {}}
    for cpu in args.cpu:
        result["models"][cpu] = count_models(cpu, args) | theirs(args.peers, cpu)
        if args.products:
            result["products"][cpu] = count_products(cpu, args)
    if args.artifact or args.gguf:
        print(model_table(result["models"], args))
    if args.products:
        print("\n" + product_table(result["products"]))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.png:
        draw(result["models"], {name for name, _ in args.artifact}, args.png)
    return 0


def arguments() -> argparse.Namespace:
    def named(text: str) -> tuple[str, Path]:
        name, mark, path = text.partition("=")
        if not mark or not Path(path).exists():
            raise argparse.ArgumentTypeError(f"{text!r}: write NAME=PATH of something that is there")
        return name, Path(path).resolve()

    def json_file(text: str) -> dict[str, Any]:
        return json.loads(Path(text).read_text(encoding="utf-8"))

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact", type=named, action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--gguf", type=named, action="append", default=[], metavar="NAME=FILE")
    parser.add_argument(
        "--peers", type=json_file, default={}, metavar="FILE",
        help="an earlier --json FILE: llama.cpp's and onnxruntime's counts are taken from it",
    )  # fmt: skip
    parser.add_argument("--cpu", choices=CPUS, action="append", help="default: all of them")
    parser.add_argument("--products", action="store_true", help="count single products too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all counts, by class of instruction")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the counts per token")
    parser.add_argument("--tree", type=Path, default=HERE.parent.parent / "build" / "arm", help="build/arm")
    args = parser.parse_args()
    args.cpu, args.tree = args.cpu or list(CPUS), args.tree.resolve()
    if not (args.artifact or args.gguf or args.products):
        parser.error("nothing to count: give --artifact, --gguf or --products")
    return args


# --------------------------------------------------------------------------------------------------- counting
def count(command: list[str | Path], *, python: str = "", plugin: Path | None = None) -> Counts:
    """Instructions of one process. `python`: run by the tree's Python on this processor, else by `plugin`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts.json"
        if python:
            front = [HERE / "run", python, "--count", out]
        else:
            front = ["qemu-aarch64", "-plugin", f"{plugin},out={out}"]
        done = subprocess.run([str(part) for part in [*front, *command]], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(
                f"{' '.join(map(str, command))} failed with {done.returncode}: {done.stderr[-2000:]}"
            )
        print(f"  {done.stdout.strip()}", file=sys.stderr)
        return json.loads(out.read_text())


def difference(more: Counts, less: Counts, by: int) -> Counts:
    return {name: (more[name] - less[name]) / by for name in more}


def count_models(cpu: str, args: argparse.Namespace) -> dict[str, dict[str, Counts]]:
    """{model: {"prompt": per prompt token, "generated": per generated token}}."""
    found = {}
    for name, path in args.artifact + args.gguf:
        print(f"{cpu}: {name}", file=sys.stderr)
        ours = path.is_dir()
        driver = args.tree / "peers" / f"peer_llama-{CPUS[cpu]}"
        program = [HERE / "peer_flatlm.py", "model", path] if ours else ["-cpu", cpu, driver, path]

        def run(times: int, tokens: int, program=program, ours=ours) -> Counts:
            command = [*program, PROMPT, times, tokens]
            return count(command, python=cpu if ours else "", plugin=args.tree / "count.so")

        base = run(1, TOKENS)
        prompt = difference(run(2, TOKENS), base, PROMPT)
        found[name] = {
            "prompt": prompt,
            "generated": difference(run(1, MORE_TOKENS), base, MORE_TOKENS - TOKENS),
        }
    return found


def theirs(peers: dict[str, Any], cpu: str) -> dict[str, dict[str, Counts]]:
    """llama.cpp's counts of an earlier run: of the GGUF files, which are not compared with themselves."""
    found = peers.get("models", {}).get(cpu, {})
    return {name: counts for name, counts in found.items() if re.fullmatch(GGUF, name)}


def count_products(cpu: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a product: its shape, who computes it, and its instructions by class."""
    rows, model = [], args.tree / "peers" / "product.onnx"
    known = [row for row in args.peers.get("products", {}).get(cpu, []) if row["by"] == "onnxruntime"]
    write_cpuinfo(cpu, args.tree)
    for n, k in SHAPES:
        ours, write = HERE / "peer_flatlm.py", [sys.executable, HERE / "peer_onnxruntime.py", "write"]
        if not known:
            subprocess.run([*write, model, str(n), str(k)], check=True)
        for m in ROWS:
            more = int(MACS / (m * n * k)) + 1
            programs = {f"flatlm {kind}": [ours, "product", kind, m, n, k] for kind in ("plain", "edge")}
            if known:
                rows += [row for row in known if (row["m"], row["n"], row["k"]) == (m, n, k)]
            else:
                programs["onnxruntime"] = [HERE / "peer_onnxruntime.py", "run", model, m]
            for name, program in programs.items():
                print(f"{cpu}: {m} x {k} by {n} x {k}, {name}", file=sys.stderr)
                low, high = (
                    min(
                        (count([*program, times], python=cpu) for _ in range(STARTS.get(name, 1))),
                        key=lambda counts: counts["total"],
                    )
                    for times in (2, 2 + more)  # from the second run on: the first one allocates
                )
                rows.append({"m": m, "n": n, "k": k, "by": name, "counts": difference(high, low, more)})
    return rows


def write_cpuinfo(cpu: str, tree: Path) -> None:
    """onnxruntime reads /proc/cpuinfo, where qemu 7 shows this machine's; the tree's own comes first.

    One entry per processor of this machine: with fewer, onnxruntime crashes on one that has none.
    """
    part, more = PARTS[cpu]
    features = (
        f"fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp{more}"
    )
    lines = [
        f"Features\t: {features}", "CPU implementer\t: 0x41", "CPU architecture: 8", "CPU variant\t: 0x1",
        f"CPU part\t: {part}", "CPU revision\t: 0", "",
    ]  # fmt: skip
    entries = ["\n".join([f"processor\t: {i}", *lines]) for i in range(os.cpu_count() or 1)]
    (tree / "root" / "proc").mkdir(exist_ok=True)
    (tree / "root" / "proc" / "cpuinfo").write_text("\n".join(entries) + "\n")


# ---------------------------------------------------------------------------------------------------- showing
def model_table(models: dict[str, dict[str, dict[str, Counts]]], args: argparse.Namespace) -> str:
    """One row a model and processor; flatlm's are compared with each GGUF file's."""
    ours = dict(args.artifact)
    peers = list(dict.fromkeys(name for found in models.values() for name in found if name not in ours))
    head = ["processor", "model", "generated token", "prompt token"]
    head += [f"÷ {peer}, {what}" for peer in peers for what in ("generated", "prompt")]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for cpu, found in models.items():
        for name, counts in found.items():
            cells = [cpu, name, *(f"{counts[what]['total'] / 1e6:.1f} M" for what in ("generated", "prompt"))]
            for peer in peers:
                other = found[peer]
                cells += [ratio(counts[w], other[w]) if name in ours else "" for w in ("generated", "prompt")]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(mine: Counts, other: Counts) -> str:
    """Marked where the goal is missed."""
    value = mine["total"] / other["total"]
    return f"{value:.2f}" if value <= GOAL else f"{value:.2f} (!)"


def product_table(products: dict[str, list[dict[str, Any]]]) -> str:
    """Instructions per multiply-accumulate, and how many of them are vector loads."""
    lines = [
        "| processor | m × k by n × k | by | instructions per MAC | vector loads per MAC | ÷ onnxruntime |"
    ]
    lines.append("|---|---|---|---:|---:|---:|")
    for cpu, rows in products.items():
        theirs = {(r["m"], r["n"], r["k"]): r["counts"] for r in rows if r["by"] == "onnxruntime"}
        for row in rows:
            m, n, k = shape = row["m"], row["n"], row["k"]
            total, loads = (row["counts"][name] / (m * n * k) for name in ("total", "vector_load"))
            cells = [cpu, f"{m} × {k} by {n} × {k}", row["by"], f"{total:.4f}", f"{loads:.4f}"]
            cells.append("" if row["by"] == "onnxruntime" else ratio(row["counts"], theirs[shape]))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(models: dict[str, dict[str, dict[str, Counts]]], ours: set[str], path: Path) -> None:
    """One panel a processor and kind of token, one bar a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = [(cpu, kind) for cpu in models for kind in ("generated", "prompt")]
    figure, panels = pyplot.subplots(1, len(places), figsize=(3.2 * len(places), 3.5), squeeze=False)
    for panel, (cpu, kind) in zip(panels[0], places, strict=True):
        totals = {name: counts[kind]["total"] / 1e6 for name, counts in models[cpu].items()}
        colours = ["tab:green" if name in ours else "tab:gray" for name in totals]
        panel.bar(range(len(totals)), list(totals.values()), color=colours, alpha=0.7)
        panel.set_xticks(range(len(totals)), list(totals), rotation=20)
        panel.set_title(f"{cpu}, per {kind} token", fontsize=9)
    panels[0][0].set_ylabel("million instructions")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
