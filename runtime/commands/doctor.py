"""flatlm doctor: what this machine offers, and what is missing. Fails where models would run on numpy."""

from __future__ import annotations

import argparse
import os
import platform
import textwrap
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flatlm.runtime.commands.common import add_json, add_model, model_path, print_json, say

PACKAGES = {  # package: what it is for
    "numpy": "everything",
    "tokenizers": "text",
    "jinja2": "chat templates",
    "numba": "native kernels compiled here",
    "onnxruntime": "the ort backend",
    "onnx": "export",
}


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.set_defaults(run=run)
    add_model(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print machine, packages, processor and kernels. Status 1 where a model would run on slow numpy.

    Of a model that is named: what a token reads of it, and whether it fits.
    """
    report: dict[str, Any] = {"machine": _machine(), "packages": _packages(), "processor": _processor()}
    if args.model or args.model_flag:
        report["model"] = _model(model_path(args))
    report["operations"] = _operations(report["processor"])
    slow = _slow(report["processor"])
    if args.json:
        print_json({**report, "ok": not slow})
    else:
        for part, facts in report.items():
            print(f"{part}:")
            for name, value in facts.items():
                said = textwrap.wrap(f"{name}: {value}", 96, break_on_hyphens=False, break_long_words=False)
                print("  " + "\n      ".join(said))
    if slow:
        say(f"flatlm: SLOW: models run on the numpy reference here, hundreds of times slower: {slow}")
    return 1 if slow else 0


def _machine() -> dict[str, Any]:
    from flatlm.runtime import memory
    from flatlm.runtime.measuring import thermal

    return {
        "system": platform.platform(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "memory": memory.describe(),
        "caches": caches() or thermal.HIDDEN,
        **thermal.facts(),
    }


def _model(path: Path) -> dict[str, str]:
    from flatlm.runtime import memory
    from flatlm.runtime.format.artifact import open_artifact
    from flatlm.runtime.reading import reading

    graph = open_artifact(path).graph
    read, free = reading(graph), memory.available_bytes()
    facts = {"weights": f"{read.all / 1e6:,.1f} MB"}
    if read.experts:
        facts["read for a token"] = str(read)
    if free is not None:
        fits = "fits" if read.all <= free else "does not fit"
        if read.resident <= free < read.all:
            fits = "what a token reads fits: other experts are read from the disk as they are needed"
        facts["memory"] = fits
    return {**facts, "memory of a sequence": memory.sequence_text(graph)}


def _packages() -> dict[str, str]:
    found = {}
    for name, purpose in PACKAGES.items():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = f"missing (for {purpose})"
    return found


def caches(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> str:
    """The first core's caches as Linux tells them: `L1 Data 32K, …`; empty where it does not."""
    found = []
    for index in sorted(root.glob("index[0-9]*")):
        try:
            level, kind, size, shared = (
                (index / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list")
            )
        except OSError:
            continue
        found.append(f"L{level} {kind} {size} (cores {shared})")
    return ", ".join(found)


def _operations(processor: Mapping[str, str]) -> dict[str, str]:
    """What runs each operation of a plan: all come from one library, so they share the tier's objections."""
    from flatlm.kernels_arm import ops

    if _slow(processor):
        return dict.fromkeys(ops.NAMES.values(), "numpy reference: SLOW")
    tier, _, what = processor["kernels"].partition(": ")
    return {name: f"{tier}, {what}" if name == "product" else tier for name in ops.NAMES.values()}


def _slow(processor: Mapping[str, str]) -> str:
    """Why there are no kernels and will be none; empty where there are."""
    from flatlm.kernels_arm.library import NONE

    if processor["kernels"] == "none":
        return f"no kernels for this processor ({processor['not chosen']})"
    if processor["library"].startswith(NONE):
        return f"no kernels ({processor['library'].removeprefix(NONE)})"
    return ""


def _processor() -> dict[str, Any]:
    from flatlm.kernels_arm import library, team

    return {**library.describe(), **team.describe()}
