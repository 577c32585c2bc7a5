"""A model on this machine's GPU: does it start, is every function exact, are tokens the same, how fast is it.

scripts/gpu_parity MODEL                     writes flatlm-gpu.json; the status is 1 where something failed
    [-o FILE] [--prompts 4] [--tokens 64] [--context 2048]
    [--gguf FILE]                            llama-bench, where it is on the path, runs beside
    [--device cpu]                           the same on the CPU: to try this script

docs/gpu.md says what the file holds. Nothing is sent anywhere.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flatlm.runtime.backends import Backend
from flatlm.runtime.backends import ort_session as sessions
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.onnx_plan.backend import FORMS, PlanBackend
from flatlm.runtime.errors import FlatlmError
from flatlm.runtime.format.artifact import Artifact, open_artifact
from flatlm.runtime.measuring.parity import PROMPTS, compare
from flatlm.runtime.text.tokenizer import load_tokenizer
from scripts.gpu_functions import functions, placement

ENOUGH = 0.999  # of the positions must have all bits


class Report:
    """What was found so far. A stage that fails is an error in it, and the next one runs."""

    def __init__(self, model: Path) -> None:
        self.found: dict[str, Any] = {"model": model.name}
        self.errors: list[str] = []

    def stage(self, name: str, work: Callable[[], Any]) -> None:
        print(f"gpu_parity: {name}", file=sys.stderr)
        started = time.perf_counter()
        try:
            self.found[name] = work()
        except (FlatlmError, RuntimeError, ValueError, OSError) as error:
            self.complain(f"{name}: {type(error).__name__}: {str(error)[:600]}")
        self.found.setdefault("seconds", {})[name] = round(time.perf_counter() - started, 1)

    def complain(self, what: str) -> None:
        print(f"gpu_parity: {what}", file=sys.stderr)
        self.errors.append(what)


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    report = Report(options.model)
    ort = sessions.import_onnxruntime()
    report.stage("machine", lambda: machine(ort))
    report.stage("start", lambda: start(ort, options.device))
    artifact = open_artifact(options.model)
    forms = FORMS[options.device]
    for form in forms:
        report.stage(f"functions {form}", lambda form=form: functions(artifact, form, options.device))
    report.stage("placement", lambda: placement(artifact, forms[0], options.device))
    report.stage("backends", lambda: backends(artifact, options, report))
    if options.gguf:
        report.stage("llama.cpp", lambda: llama(options.gguf))
    judge(report)
    report.found["errors"] = report.errors
    options.out.write_text(json.dumps(report.found, indent=1) + "\n")
    print(f"{options.out}: {'; '.join(report.errors) or 'all is well'}")
    return 1 if report.errors else 0


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", dest="out", type=Path, default=Path("flatlm-gpu.json"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gguf", type=Path)
    for name, default in (("prompts", 4), ("tokens", 64), ("context", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args(arguments)


def machine(ort: Any) -> dict[str, Any]:
    query = "name,driver_version,compute_cap,memory.total"
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "cuda": getattr(ort, "cuda_version", ""),
        "providers": ort.get_available_providers(),
        "gpu": nvidia_smi(query),
    }


def nvidia_smi(query: str) -> list[dict[str, str]] | str:
    """A row for each GPU, or why there is none."""
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        lines = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return [dict(zip(query.split(","), map(str.strip, line.split(",")), strict=True)) for line in lines]


def used_memory() -> int | None:
    """MB of the first GPU that are in use."""
    rows = nvidia_smi("memory.used")
    return None if isinstance(rows, str) or not rows else int(rows[0]["memory.used"].split()[0])


def start(ort: Any, device: str) -> dict[str, str]:
    """What loading the device's libraries said, which onnxruntime prints."""
    said = io.StringIO()
    handler, logger = logging.StreamHandler(said), logging.getLogger(sessions.__name__)
    logger.addHandler(handler)
    try:
        sessions.demand(ort, device)
    finally:
        logger.removeHandler(handler)
    return {"device": device, "said": said.getvalue().strip()}


def opened(artifact: Artifact, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Backend]]]:
    """The backends that are compared, by their name in the report; native first."""
    context = min(options.context, artifact.manifest.context_length)
    yield "native", lambda: NativeBackend(artifact, context=context)

    def plan(device: str, **more: Any) -> Callable[[], Backend]:
        return lambda: PlanBackend(artifact, context=context, device=device, **more)

    yield "ort cpu", plan("cpu")
    if options.device == "cuda":
        for form in FORMS["cuda"]:
            yield f"ort cuda {form}", plan("cuda", form=form)
            yield f"ort cuda {form}, no graphs", plan("cuda", form=form, captures=False)
    yield f"ort {options.device} --fast", plan(options.device, fast=True)


def backends(artifact: Artifact, options: argparse.Namespace, report: Report) -> list[dict[str, Any]]:
    """One row for each: seconds and memory of loading, agreement with native, rates."""
    tokenizer = load_tokenizer(artifact.path)
    prompts = [tokenizer.encode(text) for text in PROMPTS[: options.prompts]]
    rows: list[dict[str, Any]] = []
    native: Backend | None = None
    for name, make in opened(artifact, options):
        before, began = used_memory(), time.perf_counter()
        try:
            with warnings.catch_warnings(record=True) as said:
                backend = make()
        except FlatlmError as error:
            report.complain(f"{name}: {error}")
            continue
        row: dict[str, Any] = {"backend": name, "load_seconds": round(time.perf_counter() - began, 2)}
        row |= {"said": [str(one.message) for one in said]} if said else {}
        if native is None:
            native = backend
        else:
            (found,) = compare({"native": native, name: backend}, prompts, options.tokens)
            row |= {key: value for key, value in asdict(found).items() if key != "reference"}
        row |= rates(backend)
        after = used_memory()
        row |= {} if before is None or after is None else {"device_mb": after - before}
        rows.append(row)
        if backend is not native:
            backend.close()
    return rows


def rates(backend: Backend) -> dict[str, float]:
    """pp256: tokens a second of a prompt; tg32: of tokens one by one, at 256; draft4: steps of 4 a second."""
    backend.truncate(0)
    backend.forward(np.arange(1, 257))
    backend.truncate(0)
    found = {}
    for name, ids, times in (
        ("pp256", np.arange(1, 257), 1),
        ("tg32", np.array([5]), 32),
        ("draft4", np.arange(4), 8),
    ):
        rows = 4 if name == "draft4" else 1
        if name != "pp256":
            backend.forward(ids, rows)  # the one that is captured
        began = time.perf_counter()
        for _ in range(times):
            backend.forward(ids, rows)
        each = time.perf_counter() - began
        found[name] = round(times * (len(ids) if name == "pp256" else 1) / each, 1)
    return found


def llama(gguf: Path) -> list[dict[str, Any]]:
    """llama-bench's own rows of the same lengths, on its default device."""
    command = ["llama-bench", "-m", str(gguf), "-p", "256", "-n", "32", "-ngl", "99", "-o", "json"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    keep = ("build_commit", "model_type", "backends", "n_prompt", "n_gen", "avg_ts")
    return [{key: row.get(key) for key in keep} for row in json.loads(said)]


def judge(report: Report) -> None:
    """What is promised of the exact plan, as errors where it is not kept."""
    for key, value in report.found.items():
        if key.startswith("functions"):
            report.errors += [f"{key}: {name} differs" for name, one in value.items() if not one["equal"]]
    placed = report.found.get("placement")
    if placed and (placed["elsewhere"] or placed["copies"] or placed["branches"]):
        report.complain(f"placement: nodes left the device: {placed}")
    for row in report.found.get("backends", []):
        if "equal_bits" not in row or row["backend"].endswith("--fast"):
            continue
        if row["top1_agreement"] < 1 or row["equal_bits"] < ENOUGH:
            report.complain(
                f"{row['backend']}: other tokens or bits than native at {row['first_difference']}"
            )


if __name__ == "__main__":
    sys.exit(main())
