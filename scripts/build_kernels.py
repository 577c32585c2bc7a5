"""Build the kernel libraries that a wheel ships, for every system and tier, on any machine.

    python scripts/build_kernels.py [--only TIER ...] [--system SYSTEM ...] [--host] OUT

A library has no undefined symbol (the linker refuses one), no libc, 16 KiB pages and a digest at its end. One
process compiles one tier for all its systems; two run at a time. All ten take about four minutes of one core.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from flatlm.kernels_arm import cpu, library, linker
from flatlm.kernels_arm.aot import SYSTEMS, compile_in_subprocess
from flatlm.kernels_arm.cpu import BY_NAME, TIERS, Tier

TARGETS = {  # tier: the systems it ships for. Every Mac with an ARM processor has dotprod.
    "i8mm": ("linux", "android", "macos"),
    "dotprod": ("linux", "android", "macos"),
    "neon": ("linux", "android"),
    "avx512vnni": ("linux",),
    "avx2": ("linux",),
}
OURS = re.compile(rf"flatlm-({'|'.join(SYSTEMS)})-({'|'.join(BY_NAME)})-[0-9a-f]{{16}}\.so")


def build(tier: Tier, systems: tuple[str, ...], out: Path) -> list[Path]:
    """Compile, link and seal one tier for its systems. Raises RuntimeError with the tool's words."""
    started, made = time.monotonic(), [out / f"{library.library_name(tier, s)}.so" for s in systems]
    with tempfile.TemporaryDirectory(dir=out) as temporary:
        objects = {system: Path(temporary) / f"{system}.o" for system in systems}
        compile_in_subprocess(tier, objects)
        for (system, path), final in zip(objects.items(), made, strict=True):
            linked = path.with_suffix(".so")
            if complaint := linker.link(path, linked, tier, system):
                raise RuntimeError(f"linking the {tier.name} kernels for {system} failed: {complaint}")
            linker.seal(linked)
            os.replace(linked, final)
    seconds = time.monotonic() - started
    sizes = ", ".join(f"{s} {p.stat().st_size:,} B" for s, p in zip(systems, made, strict=True))
    print(f"{tier.name:10s} {seconds:5.1f} s  {sizes}", file=sys.stderr, flush=True)
    return made


def build_all(out: Path, only: list[str] | None = None, systems: list[str] | None = None) -> list[Path]:
    """Every target, or those of some tiers and systems; libraries of older sources are removed."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = {
        tier: kept
        for tier in TIERS
        if (not only or tier.name in only)
        and (kept := tuple(s for s in TARGETS[tier.name] if not systems or s in systems))
    }
    with ThreadPoolExecutor(2) as pool:
        made = [path for some in pool.map(lambda item: build(*item, out), wanted.items()) for path in some]
    for old in out.iterdir():
        if OURS.fullmatch(old.name) and library.source_hash() not in old.name:
            old.unlink()
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the kernel libraries that a wheel ships.")
    parser.add_argument("out", type=Path, help="folder to write them to")
    parser.add_argument("--only", action="append", choices=list(BY_NAME), help="this tier; may be repeated")
    parser.add_argument(
        "--system", action="append", choices=list(SYSTEMS), help="this system; may be repeated"
    )
    parser.add_argument("--host", action="store_true", help="only what this machine would load")
    args = parser.parse_args()
    if args.host:
        chosen = cpu.choose().tier
        args.only, args.system = [chosen.name] if chosen else [], [library.platform_name()]
    try:
        made = build_all(args.out, args.only, args.system)
    except RuntimeError as error:
        print(f"build_kernels: {error}", file=sys.stderr)
        return 1
    for path in made:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
