"""Sessions of onnxruntime: no telemetry, quiet preloading, and errors that say what helps."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnxruntime

from flatlm.export.onnx_writer import write_onnx
from flatlm.runtime.backends import ort_session as sessions
from flatlm.runtime.backends.onnx_plan import backend as plans
from flatlm.runtime.backends.ort import OrtBackend
from flatlm.runtime.errors import BackendError, FormatError
from flatlm.runtime.format.graph import Graph
from flatlm.runtime.format.onnx_reader import read_onnx
from tests.tiny_graphs import quantized_graph


def test_a_run_leaves_no_file_in_the_users_folders(tmp_path):
    write_onnx(quantized_graph(0), tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    program = (
        "from types import SimpleNamespace; from pathlib import Path; import sys\n"
        "from flatlm.runtime.backends.onnx_plan.opening import open_ort\n"
        "from flatlm.runtime.format.onnx_reader import read_onnx\n"
        "folder = Path(sys.argv[1])\n"
        "artifact = SimpleNamespace(graph=read_onnx(folder / 'model.onnx'), path=folder)\n"
        "open_ort(artifact, threads=1).forward([1])\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != sessions.TELEMETRY}
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "XDG_DATA_HOME": str(home / "data")}
    command = [sys.executable, "-c", program, str(tmp_path)]
    subprocess.run(command, check=True, env={**kept, **places, "PYTHONPATH": os.getcwd()})
    assert [str(path) for path in home.rglob("*")] == []


@pytest.mark.parametrize("value", [None, "0"])
def test_a_user_may_have_telemetry(monkeypatch, value):
    monkeypatch.delenv(sessions.TELEMETRY)
    if value is not None:
        monkeypatch.setenv(sessions.TELEMETRY, value)
    sessions.import_onnxruntime()
    assert os.environ[sessions.TELEMETRY] == (value or "1")


def test_what_preloading_prints_is_logged_and_does_not_reach_stdout(capsys, caplog):
    def preload_dlls():
        print("Failed to load libcublasLt.so.13")

    fake = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider"], preload_dlls=preload_dlls
    )
    sessions.demand(fake, "cuda")
    assert capsys.readouterr().out == ""
    assert caplog.messages == ["Failed to load libcublasLt.so.13"]


def fake_onnxruntime(session):
    """With a CUDA provider whose sessions `session` makes."""
    return SimpleNamespace(__version__="1.31.1", InferenceSession=session, capi=onnxruntime.capi)


def test_a_provider_that_falls_back_to_the_cpu_is_an_error(monkeypatch):
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    fake = fake_onnxruntime(lambda *_, **__: session)
    with pytest.raises(BackendError, match=r"does not start on this machine: a driver .*flatlm\[gpu\]"):
        sessions.open_session(fake, b"", None, "cuda")


def test_a_session_that_cannot_be_made_is_the_files_fault_on_the_cpu_and_the_devices_elsewhere():
    def session(*_, **__):
        raise RuntimeError("CUDA error 2: out of memory; GPU=0")

    fake = fake_onnxruntime(session)
    with pytest.raises(FormatError, match=r"cannot load a/model\.onnx: CUDA error"):
        sessions.open_session(fake, "a/model.onnx", None, "cpu")
    with pytest.raises(sessions.DeviceError, match=r"memory is full: take a shorter --ctx"):
        sessions.open_session(fake, b"", None, "cuda")


@pytest.mark.parametrize(
    ("said", "another", "advice"),
    [
        ("ReduceMax ... cuDNN is unavailable", False, r"cuDNN is not there .*flatlm\[gpu\]"),
        ("no kernel image is available for execution", False, "docs/gpu.md"),
        ("CUBLAS failure 15: CUBLAS_STATUS_NOT_SUPPORTED", True, "cuBLAS refuses the product"),
        ("Failed to allocate memory for requested buffer", True, "memory is full"),
        ("something else", True, "--device cpu runs it"),
    ],
)
def test_a_step_that_fails_is_an_error_with_advice(said, another, advice):
    """A DeviceError where another form of the products, or no captured graph, may do."""
    with (
        pytest.raises(BackendError, match=f"the first step failed in onnxruntime .*{advice}") as raised,
        sessions.advised(onnxruntime, "the first step"),
    ):
        raise RuntimeError(said)
    assert isinstance(raised.value, sessions.DeviceError) == another


# ---- which plan is taken where one fails


class Machine:
    """In the place of PlanBackend: some ways of running a plan fail."""

    def __init__(self, monkeypatch, *works):
        self.tried = []
        self.works = works
        monkeypatch.setattr(plans, "PlanBackend", self.opened)

    def opened(self, artifact, *, device, form, captures, **options):
        self.tried.append((form, captures))
        if (form, captures) not in self.works:
            raise sessions.DeviceError(f"{form} {captures}")
        return form, captures


def test_the_first_plan_that_runs_is_taken_and_why_not_another(monkeypatch):
    machine, model = Machine(monkeypatch, ("double", True)), SimpleNamespace(graph=Graph())
    assert plans.open_plan(model, device="cuda") == ("double", True)
    machine.works = (("int8", True),)
    with pytest.warns(plans.OtherPlanWarning, match="int8 products, as CUDA graphs, because .*: double True"):
        assert plans.open_plan(model, device="cuda") == ("int8", True)
    machine.works = (("double", False),)
    with pytest.warns(plans.OtherPlanWarning, match="double products, launched node by node"):
        assert plans.open_plan(model, device="cuda") == ("double", False)


def test_where_no_plan_runs_the_first_ones_error_is_raised(monkeypatch):
    machine, model = Machine(monkeypatch), SimpleNamespace(graph=Graph())
    with pytest.raises(sessions.DeviceError, match="double True"):
        plans.open_plan(model, device="cuda")
    assert machine.tried == [("double", True), ("int8", True), ("double", False), ("int8", False)]


@pytest.mark.parametrize(("free", "form"), [(None, "double"), (9 * 20000, "double"), (9 * 2000, "int8")])
def test_float64_is_left_out_where_the_machine_could_not_make_it(monkeypatch, free, form):
    """The tiny model has some 8,000 weights."""
    Machine(monkeypatch, ("double", True), ("int8", True))
    monkeypatch.setattr(plans, "available_bytes", lambda: free)
    model = SimpleNamespace(graph=quantized_graph(0))
    assert plans.open_plan(model, device="cuda") == (form, True)


# ---- the file as it stands


@pytest.mark.parametrize(
    "model", [("float32", "static", "qk_norm"), ("int8", "token", "window")], ids="-".join
)
def test_the_file_as_it_stands_gives_the_plans_bits(tmp_path, model):
    write_onnx(quantized_graph(0, *model), tmp_path)
    artifact = SimpleNamespace(graph=read_onnx(tmp_path / "model.onnx"), path=tmp_path)
    ids = np.arange(20) * 7 % 53
    plan = plans.PlanBackend(artifact, threads=1).forward(ids, 20)
    np.testing.assert_array_equal(plan, OrtBackend(artifact, threads=1).forward(ids, 20))
