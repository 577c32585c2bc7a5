"""One name: what a user imports, runs and installs is `flatlm`, whatever else is called runtime or export."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str, cwd: Path, **env: str) -> str:
    """Standard output of `command`; its words where it fails."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **env}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_program_may_have_folders_and_files_of_our_parts_names(tmp_path):
    for name in ("runtime", "export", "tests", "kernels_arm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = True")
    (tmp_path / "program.py").write_text(
        "import runtime, export, tests, kernels_arm\n"
        "from flatlm import LLM, SamplingOptions\n"
        "import flatlm.runtime.backends.numpy, flatlm.kernels_arm.layout, flatlm.export.config\n"
        "print(all(module.MINE for module in (runtime, export, tests, kernels_arm)), LLM.__module__)\n"
    )
    out = run(sys.executable, "program.py", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert out == "True flatlm.runtime.llm\n"


def test_the_module_is_the_command(tmp_path):
    import flatlm

    out = run(sys.executable, "-m", "flatlm", "--version", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert out == f"flatlm {flatlm.__version__}\n"


def test_a_wheel_installs_one_package(tmp_path):
    pytest.importorskip("hatchling")
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    run(sys.executable, "-c", build, str(tmp_path), cwd=ROOT, FLATLM_BUILD_KERNELS="none")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"flatlm"}
    wanted = (
        "__init__.py",
        "py.typed",
        "runtime/llm.py",
        "export/data/calibration.txt",
        "kernels_arm/ops.py",
    )
    assert {f"flatlm/{name}" for name in wanted} <= set(names)
    code = "from flatlm import LLM, __version__, __path__; print(__version__, *__path__)"
    out = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert out.split()[1].startswith(str(tmp_path))
    assert wheel.name.startswith(f"flatlm-{out.split()[0]}-")
