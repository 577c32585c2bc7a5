"""flatlm doctor: what this machine offers, and what is missing."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from runtime.cli import add_verb
from runtime.commands.common import add_json, print_json

PACKAGES = {  # package: what it is for
    "numpy": "everything",
    "tokenizers": "text",
    "jinja2": "chat templates",
    "numba": "native kernels compiled here",
    "onnxruntime": "the ort backend",
    "onnx": "export",
}


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb's parser."""
    add_json(add_verb(subparsers, "doctor", run, ""))


def run(args: argparse.Namespace) -> int:
    """Print machine, packages and processor features."""
    report = {"machine": _machine(), "packages": _packages(), "processor": _processor()}
    if args.json:
        print_json(report)
        return 0
    for part, facts in report.items():
        print(f"{part}:")
        for name, value in facts.items():
            print(f"  {name}: {value}")
    return 0


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
    }


def _packages() -> dict[str, str]:
    found = {}
    for name, purpose in PACKAGES.items():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = f"missing (for {purpose})"
    return found


def _processor() -> dict[str, Any]:
    from kernels_arm import library, team

    return {**library.describe(), **team.describe()}
