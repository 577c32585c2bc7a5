"""Print the inner loop of a kernel as compiled for a tier, and what a multiply-accumulate costs in it.

    python scripts/asm.py int4_16 --cpu dotprod
    python scripts/asm.py --table [--cpu neon ...]      every kernel's figures as JSON (tests/asm_table.json)

The code is what `kernels_arm.aot` makes for the wheel, on any machine. Figures per multiply-accumulate (MAC):
instructions, vector registers loaded, vector registers stored (in an inner loop these are spills). Cycles are
llvm-mca's where llvm-mca-19 is installed: a model of a core without its memory, good for comparing two loops.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from flatlm.kernels_arm import aot, cpu, llvm
from flatlm.kernels_arm.cpu import BY_NAME, TIERS, Tier

# product: of m tokens; many: of m of many, on a ready panel; attention: of so many query rows
GATED = r"_(int[48]_\d+|ready_\d+|(scores|values)_[136])"
MCA = "llvm-mca-19"
CORES = {"neon": "cortex-a72", "dotprod": "neoverse-n1", "i8mm": "neoverse-n2"}  # whose models are usable


# ------------------------------------------------------------------------------------------------- compile
def gated_kernels(tier: Tier) -> list[str]:
    """The kernels of the table: products of the tier's tiles, attention for one, three and six rows."""
    from flatlm.kernels_arm import attention, many, panels, product, tiles

    llvm.set_tier(tier)
    modules = (product, many, attention)
    names = [name[1:] for module in modules for name in vars(module) if re.fullmatch(GATED, name)]
    sizes = {"int4": tiles.tile_sizes(), "int8": tiles.tile_sizes(), "ready": panels.ready_sizes()}

    def compiled(name: str) -> bool:
        kind, _, size = name.partition("_")
        return kind not in sizes or int(size) in sizes[kind]

    return [name for name in names if compiled(name)]


def assembly(names: list[str], tier: Tier) -> str:
    """The kernels' code for Linux, each under its own name. One tier per process."""
    triple = aot.triple_of(tier, "linux")
    llvm.set_tier(tier)
    aot.retarget_numba(tier, triple)
    module, machine = aot.optimize(aot.link_modules([_entry(name) for name in names]), tier, triple)
    return machine.emit_assembly(module)


def _entry(name: str):
    """(function, signature, name) as `aot.link_modules` wants them; every argument is an int64."""
    from numba import types

    from flatlm.kernels_arm import attention, many, product

    function = next(found for m in (product, many, attention) if (found := getattr(m, f"_{name}", None)))
    arguments = function.py_func.__code__.co_argcount
    return function, types.void(*[types.int64] * arguments), name


# ------------------------------------------------------------------------------------------------- measure
@dataclass(frozen=True)
class Loop:
    """The inner loop of a kernel: its instructions, and what it does in one round."""

    lines: tuple[str, ...]
    macs: int
    loads: int
    stores: int

    def figures(self) -> dict[str, float]:
        counts = {"instructions": len(self.lines), "loads": self.loads, "stores": self.stores}
        return {name: round(count / self.macs, 5) for name, count in counts.items()}


def inner_loop(text: str, name: str, tier: Tier) -> Loop:
    """The innermost loop of a function that multiplies most; of equals the last, which is the one over k."""
    body = re.search(rf"^{name}:.*?^\.Lfunc_end", text, re.M | re.S)
    assert body, f"no function {name} in the compiled code"
    lines = [re.sub(r"\s*(//|#\s).*", "", line) for line in body[0].splitlines()]
    loops = [_measure(found, tier) for found in _innermost(lines)]
    loop = max(reversed(loops), key=lambda loop: loop.macs)
    assert loop.macs, f"{name} multiplies with instructions that _MACS does not know"
    return loop


def _innermost(lines: list[str]) -> list[list[str]]:
    """Instructions of each loop that holds no other."""
    labels, spans = {}, []
    for i, line in enumerate(lines):
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = i
        elif (jump := re.match(r"\s+\S+\s.*?(\.LBB\w+)$", line)) and jump[1] in labels:
            spans.append((labels[jump[1]], i))
    inner = [s for s in spans if not any(s != o and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [[x for x in lines[a : b + 1] if re.match(r"\s+[a-z]", x)] for a, b in inner]


_MACS = {  # instruction with its destination: multiply-accumulates (a float multiply counts as one)
    "aarch64": (
        (r"[su]{1,2}dot\s+v\d+\.4s", 16), (r"[su]{1,2}mmla\s", 32), (r"[su]m(ul|la)l2?\s+v\d+\.8h", 8),
        (r"fm(ul|la)\s+v\d+\.4s", 4), (r"fm(ul|la)\s+v\d+\.2d", 2),
    ),
    "x86_64": (
        (r"vpdpbusd\s.*%zmm", 64), (r"vpmaddubsw\s.*%ymm", 32),
        *((rf"v(mul|fmadd\d+)p{kind}\s.*%{width}mm", n)
          for kind, width, n in (("s", "z", 16), ("s", "y", 8), ("d", "z", 8), ("d", "y", 4))),
    ),
}  # fmt: skip
_LOADS = {
    "aarch64": ((r"ldp\s+[qds]\d", 2), (r"ld[u]?r\s+[qdsbh]\d", 1), (r"ld1r?\s", 1)),
    "x86_64": ((r"v\S+\s+[^,]*\(%.*\),? ?.*%[xyz]mm\d+$", 1), (r"v\S+\s+.*\(%.*\).*, %[xyz]mm\d+$", 1)),
}
_STORES = {
    "aarch64": ((r"stp\s+[qds]\d", 2), (r"st[u]?r\s+[qdsbh]\d", 1), (r"st1\s", 1)),
    "x86_64": ((r"v\S+\s+%[xyz]mm\d+, .*\(%.*\)$", 1),),
}


def _measure(lines: list[str], tier: Tier) -> Loop:
    def total(weights) -> int:
        return sum(next((n for pattern, n in weights if re.match(pattern, x.strip())), 0) for x in lines)

    macs, loads, stores = (total(weights[tier.machine]) for weights in (_MACS, _LOADS, _STORES))
    return Loop(tuple(lines), macs, loads, stores)


def cycles(loop: Loop, tier: Tier) -> float | None:
    """Cycles of one round by llvm-mca; None without it or without a model of the tier's cores."""
    if not shutil.which(MCA) or tier.name not in CORES:
        return None
    text = "\n".join([".Lx:", *(re.sub(r"\.LBB\w+", ".Lx", line) for line in loop.lines)])
    triple = aot.triple_of(tier, "linux")
    command = [MCA, f"-mtriple={triple}", f"-mcpu={CORES[tier.name]}", "-iterations=200", "-json"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout[done.stdout.index("{") :])["CodeRegions"][0]["SummaryView"]
    return summary["TotalCycles"] / summary["Iterations"]


def table(names: list[str], tier: Tier, with_cycles: bool = False) -> dict[str, dict[str, float]]:
    """Figures of several kernels; with llvm-mca's MAC per cycle if wanted and at hand."""
    text, rows = assembly(names, tier), {}
    for name in names:
        loop = inner_loop(text, name, tier)
        rows[name] = loop.figures()
        if with_cycles and (count := cycles(loop, tier)):
            rows[name]["macs_per_cycle"] = round(loop.macs / count, 1)
    return rows


# ----------------------------------------------------------------------------------------------- command line
def main() -> int:
    parser = argparse.ArgumentParser(description="The inner loops of the kernels and their cost.")
    parser.add_argument("kernel", nargs="?")
    parser.add_argument(
        "--cpu",
        nargs="+",
        choices=list(BY_NAME),
        help="tiers; default: this machine's, of a table all of ARM",
    )
    parser.add_argument("--table", action="store_true", help="the figures of every kernel as JSON")
    parser.add_argument("--cycles", action="store_true", help="with llvm-mca's MAC per cycle in the table")
    args = parser.parse_args()
    if args.table:
        tiers = args.cpu or [tier.name for tier in TIERS if tier.machine == "aarch64"]
        print(json.dumps(_tables(tiers, args.cycles), indent=1))
        return 0
    tier = BY_NAME[args.cpu[0]] if args.cpu else cpu.choose().tier
    if tier is None:
        parser.error("this machine has no tier; name one with --cpu")
    if args.kernel not in gated_kernels(tier):
        parser.error(f"which kernel? One of {', '.join(gated_kernels(tier))}")
    show(args.kernel, tier)
    return 0


def _tables(tiers: list[str], with_cycles: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Each tier in a process of its own, as Numba is retargeted once."""
    if len(tiers) == 1:
        tier = BY_NAME[tiers[0]]
        return {tier.name: table(gated_kernels(tier), tier, with_cycles)}
    flags = ["--cycles"] if with_cycles else []
    commands = [[sys.executable, __file__, "--table", *flags, "--cpu", tier] for tier in tiers]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    answers = [process.communicate()[0] for process in running]
    return {name: rows for answer in answers for name, rows in json.loads(answer).items()}


def show(name: str, tier: Tier) -> None:
    loop = inner_loop(assembly([name], tier), name, tier)
    print("\n".join(loop.lines))
    print(f"\n{name} for {tier.name}: {len(loop.lines)} instructions, {loop.macs} MAC, "
          f"{loop.loads} vectors loaded, {loop.stores} stored")  # fmt: skip
    print("  per MAC: " + ", ".join(f"{value:.4f} {name}" for name, value in loop.figures().items()))
    if count := cycles(loop, tier):
        print(f"  {MCA} -mcpu={CORES[tier.name]}: {count:.1f} cycles, {loop.macs / count:.1f} MAC per cycle")


if __name__ == "__main__":
    sys.exit(main())
