"""What every test file shares: how hypothesis runs, and the exported model that tests marked `real` read."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings

# An example may compile a kernel, so examples have no deadline; in CI they are the same ones every time.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads it when a test file imports it

NUMBERS = count()
REAL = "FLATLM_TEST_MODEL"  # environment: an exported model to use in the place of the demo's


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of a real exported model; skips where there is none."""
    default = Path(__file__).parent.parent / "models" / "smollm2-135m-edge"
    path = Path(os.environ.get(REAL, default))
    if not path.is_dir():
        pytest.skip(f"{path} is not there: run scripts/demo, or set {REAL}")
    return path


@pytest.fixture(autouse=True)
def models_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models by name of each test; empty, and not the user's."""
    folder = tmp_path_factory.getbasetemp() / f"models-{next(NUMBERS)}"
    monkeypatch.setenv("FLATLM_MODELS", str(folder))
    return folder


@pytest.fixture(autouse=True)
def kept_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What drafting learned no other test sees."""
    folder = tmp_path_factory.getbasetemp() / f"kept-{next(NUMBERS)}"
    monkeypatch.setattr("flatlm.runtime.drafting.kept.default_folder", lambda: folder)
    return folder
