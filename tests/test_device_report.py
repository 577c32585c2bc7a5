"""scripts/device_report.sh: one JSON whatever fails, by any POSIX shell."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_models import tiny_model

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "device_report.sh"
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]

pytestmark = pytest.mark.skipif(sys.platform == "win32" or not SHELLS, reason="no POSIX shell")


def program(path: Path, body: str) -> str:
    """An executable shell script at `path`; returns the path."""
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def report(tmp_path):
    """A function that runs the script with `flatlm` being `command`: (status, stderr, the report or None)."""

    def run(*arguments: str, command: str, shell: str = "sh"):
        out = tmp_path / "report.json"
        environment = os.environ | {"FLATLM": command, "HOME": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"}
        applet = [shell, "sh"] if shell == "busybox" else [shell]
        done = subprocess.run(
            [*applet, str(SCRIPT), "-o", str(out), *map(str, arguments)],
            env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        text = out.read_text(encoding="utf-8") if out.exists() else ""
        return done.returncode, done.stderr, json.loads(text) if text else None

    return run


@pytest.fixture
def folder(tmp_path):
    """What the script takes for a model."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "flatlm.json").write_text("{}")
    return tmp_path / "model"


STUB = """case $1 in
    --version) echo 'flatlm "1"' ;;
    doctor) echo talk; echo "{\\"tier\\": \\"$FLATLM_CPU\\", \\"library\\": \\"$HOME/native\\"}" ;;
    bench) echo 'no "kernels" here' >&2; exit 1 ;;
    parity) echo '{"ok": true}' ;;
esac"""


def test_a_tiny_model_is_reported_whole(report, tmp_path):
    pytest.importorskip("onnx")
    from flatlm.export import exporter
    from flatlm.export.recipe import Recipe
    from flatlm.export.sources import open_source

    source = open_source(str(tiny_model(tmp_path / "source")))
    recipe = Recipe(name="edge", windows=2, alphas=(0.5,))
    model = exporter.export(
        source, tmp_path / "tiny", recipe, tell=lambda stage: lambda done, total: None
    ).path
    main = "import sys; from flatlm.runtime.cli import main; sys.exit(main())"
    command = program(tmp_path / "flatlm", f"PYTHONPATH='{ROOT}' exec '{sys.executable}' -c '{main}' \"$@\"")
    sizes = ("-p", "32", "-n", "8", "-r", "2")
    status, talk, found = report(*sizes, model, command=command)
    assert (status, found["errors"]) == (0, []), talk
    assert [row["test"] for row in found["speed, one thread"]["tests"]] == ["pp32", "tg8"]
    assert len(found["speed, default threads"]["sensors"]) >= 2
    assert found["parity"]["ok"] is True
    assert found["doctor"]["processor"]["kernels"] != "none"


@pytest.mark.parametrize("shell", SHELLS)
def test_what_fails_is_named_and_the_rest_goes_on(shell, report, folder, tmp_path):
    status, _, found = report(folder, command=program(tmp_path / "stub", STUB), shell=shell)
    assert status == 1
    assert found["errors"] == [
        'speed, default threads: status 1, no "kernels" here',
        'speed, one thread: status 1, no "kernels" here',
    ]
    assert found["speed, one thread"]["tests"] is None
    assert (found["flatlm"], found["parity"]) == ('flatlm "1"', {"ok": True})


def test_every_tier_is_asked_for_and_the_home_folder_is_not_named(report, folder, tmp_path):
    _, _, found = report(folder, command=program(tmp_path / "stub", STUB))
    tiers = {name.split()[1]: part for name, part in found.items() if name.startswith("doctor ")}
    assert tiers == {name: {"tier": name, "library": "~/native"} for name in tiers}
    assert str(tmp_path) not in json.dumps(found)


@pytest.mark.parametrize(
    ("arguments", "command", "message"),
    [
        ((), "true", "usage: sh device_report.sh"),
        (("-x", "model"), "true", "usage: sh device_report.sh"),
        (("nowhere",), "true", "nowhere is no exported model: there is no flatlm.json in it"),
        (("{model}",), "no-such-command", "`no-such-command --version` does not run: pip install flatlm"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_written(arguments, command, message, report, folder):
    filled = [text.format(model=folder) for text in arguments]
    status, talk, found = report(*filled, command=command)
    assert (status, found) == (2, None)
    assert message in talk
