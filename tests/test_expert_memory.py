"""A model of experts: what a token reads of it, and that one which is larger than the memory runs."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.runtime import memory
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.cli import main
from flatlm.runtime.errors import ResourceError
from flatlm.runtime.memory import cache_bytes, require_memory
from flatlm.runtime.ops import flat_experts
from flatlm.runtime.reading import reading
from tests.tiny_checkpoints import tiny
from tests.tiny_graphs import CONTEXT, EXPERTS, KEPT, VOCABULARY, quantized_graph


@pytest.fixture(scope="module")
def graph():
    return quantized_graph(0, "float32", "token", "experts")


def total(graph) -> int:
    return sum(tensor.data.nbytes for tensor in graph.constants.values())


def test_a_token_reads_all_but_the_experts_that_it_does_not_go_to(graph):
    read = reading(graph)
    each = [flat_experts.expert_bytes(graph, node) for node in graph.nodes if node.op == "FlatExperts"]
    assert len(each) == 4 and read.layers == ((KEPT, EXPERTS),) * 4
    assert (read.all, read.experts, read.chosen) == (total(graph), EXPERTS * sum(each), KEPT * sum(each))
    assert read.token == read.resident == read.all - (EXPERTS - KEPT) * sum(each)  # the table is the head's
    assert str(read).endswith("2 of 6 experts of a layer")


def test_a_model_without_experts_is_read_as_a_whole():
    graph = quantized_graph()
    read = reading(graph)
    assert (read.experts, read.token, read.resident) == (0, total(graph), total(graph))


def test_a_model_larger_than_the_memory_opens_with_a_warning(graph, monkeypatch):
    need = reading(graph).resident + cache_bytes(graph, CONTEXT)
    for free, what in ((need - 1, "error"), (need, "warning"), (total(graph) + need, "nothing")):
        monkeypatch.setattr(memory, "available_bytes", lambda free=free: free)
        if what == "error":
            with pytest.raises(ResourceError, match="the model needs"):
                require_memory(graph, CONTEXT)
        elif what == "warning":
            with pytest.warns(UserWarning, match="others are read from"):
                require_memory(graph, CONTEXT)
        else:
            require_memory(graph, CONTEXT)


def test_the_weights_of_experts_are_used_where_they_are(graph):
    backend = NativeBackend(SimpleNamespace(graph=graph), threads=1)
    held = {id(array) for array in backend.plan.keep}
    for node in (node for node in graph.nodes if node.op == "FlatExperts"):
        assert id(graph.constants[node.inputs[1]].data) in held
    backend.forward(np.arange(4) % VOCABULARY)
    backend.close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("onnx")
    from dataclasses import replace

    from flatlm.export import exporter
    from flatlm.export.recipe import RECIPES
    from flatlm.export.sources import open_source

    folder = tmp_path_factory.mktemp("experts")
    source = open_source(str(tiny(folder / "source", "qwen3_moe")))
    recipe = replace(RECIPES["w8a8"], windows=2, alphas=(0.5,))
    return exporter.export(source, folder / "out", recipe, tell=lambda stage: lambda done, total: None).path


def run(capsys, *arguments: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main([*arguments])
    return capsys.readouterr().out


def test_info_and_doctor_say_what_a_token_reads(exported, capsys):
    assert "2 of 6 experts of a layer" in run(capsys, "info", str(exported))
    facts = json.loads(run(capsys, "doctor", str(exported), "--json").splitlines()[-1])["model"]
    assert facts["read for a token"].endswith("2 of 6 experts of a layer")
    assert facts["memory"] == "fits"


def test_doctor_says_that_other_experts_come_from_the_disk(exported, capsys, monkeypatch):
    from flatlm.runtime.format.artifact import open_artifact

    read = reading(open_artifact(exported).graph)
    for free, what in ((read.resident, "what a token reads fits"), (read.resident - 1, "does not fit")):
        monkeypatch.setattr(memory, "available_bytes", lambda *_, free=free: free)
        facts = json.loads(run(capsys, "doctor", str(exported), "--json").splitlines()[-1])["model"]
        assert facts["memory"].startswith(what)
