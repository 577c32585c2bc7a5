"""scripts/gpu_parity.py, tried with the CPU in the GPU's place: what its file says, what it finds wrong."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from flatlm.export import exporter
from flatlm.export.recipe import RECIPES
from flatlm.export.sources import open_source
from scripts import gpu_functions, gpu_parity
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    source = open_source(str(tiny_model(folder / "source", context_length=512)))
    recipe = dataclasses.replace(RECIPES["edge"], windows=2, alphas=(0.5,))
    exporter.export(source, folder / "tiny", recipe, tell=lambda stage: lambda done, total: None)
    return folder / "tiny"


def run(model, folder, *flags):
    out = folder / "gpu.json"
    arguments = [str(model), "-o", str(out), "--device", "cpu", "--prompts", "2", "--tokens", "20", *flags]
    return gpu_parity.main(arguments), json.loads(out.read_text())


def test_the_file_says_what_was_found(model, tmp_path, capsys):
    status, found = run(model, tmp_path)
    assert (status, found["errors"], found["model"]) == (0, [], "tiny")
    assert {"onnxruntime", "cuda", "providers", "gpu"} <= set(found["machine"])
    functions = found["functions uint8"]
    assert {"RotaryTable", "FlatEmbedding", "Norm", "Append", "Attend"} <= set(functions)
    assert all(one["equal"] for one in functions.values())
    placed = found["placement"]
    assert placed["total"] > 100
    assert (placed["elsewhere"], placed["copies"], placed["branches"]) == ({}, 0, 0)
    native, plan, fast = found["backends"]
    assert [native["backend"], plan["backend"], fast["backend"]] == ["native", "ort cpu", "ort cpu --fast"]
    assert (plan["equal_bits"], plan["positions"], plan["first_difference"]) == (1.0, 40, None)
    assert fast["mean_kl"] > 0
    assert min(row[rate] for row in found["backends"] for rate in ("pp256", "tg32", "draft4")) > 0
    assert capsys.readouterr().out.endswith("all is well\n")


def test_bits_that_differ_and_nodes_that_left_the_device_are_errors(model, tmp_path, monkeypatch, capsys):
    report = gpu_parity.Report(model)
    row = {"backend": "ort cuda double", "top1_agreement": 1.0, "equal_bits": 0.99, "first_difference": None}
    report.found |= {
        "functions double": {"Norm": {"equal": True}, "Attend": {"equal": False}},
        "placement": {"elsewhere": {"BitwiseXor": 1}, "copies": 2, "branches": 0},
        "backends": [row, row | {"backend": "ort cuda --fast"}, {"backend": "native"}],
    }
    gpu_parity.judge(report)
    assert [error.partition(":")[0] for error in report.errors] == [
        "functions double",
        "placement",
        "ort cuda double",
    ]


def test_a_stage_that_fails_is_an_error_and_the_next_one_runs(model, tmp_path):
    status, found = run(model, tmp_path, "--gguf", "no.gguf")
    assert status == 1
    assert len(found["errors"]) == 1
    assert found["errors"][0].startswith("llama.cpp: FileNotFoundError")


def test_outputs_are_compared_bit_for_bit():
    one = np.float32([1, -2, 0])
    assert gpu_functions.compared([one], [one.copy()]) == {"equal": True}
    other = np.nextafter(one, np.float32(9))
    expected = {"equal": False, "equal_share": 0.0, "largest_ulp": 1.0}
    assert gpu_functions.compared([one], [other]) == expected
    assert not gpu_functions.compared([np.float32([0.0])], [np.float32([-0.0])])["equal"]
