"""The functions of docs/format.md as export knows them: each has its parts, equal bodies are one function."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from flatlm.export import execute, ops
from flatlm.export.passes import smooth
from flatlm.runtime.errors import UnsupportedError
from flatlm.runtime.format.functions import STANDARD
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.onnx_reader import read_onnx
from flatlm.runtime.ops import OPS
from tests.test_passes import float_graph, random_tokens

RECURRENT = {"Parts", "Mul", "GroupedNorm", "CausalConv", "LinearAttention"}
FLOAT = {node.op for node in float_graph(qk_norm=True).nodes}
OF_IDS = {"Embedding", "RotaryTable"}  # read ids and positions: nothing is differentiated by those


@pytest.mark.parametrize("op", OPS)
def test_every_function_of_the_format_has_its_parts(op):
    function = ops.of(op)
    assert function.name == op
    assert callable(function.operation)
    assert (function.backward is not None) == (op not in OF_IDS and not op.startswith("Flat"))
    assert (function.body is None) == (op in STANDARD)
    has_parameters = "weight" in OPS[op].signature({}).inputs
    assert (function.parameters is not None) == has_parameters
    assert function.matrix in ("linear", "table", "experts", "") and (has_parameters or not function.matrix)
    assert function.rows is None or function.origin is not None
    assert (function.over_int8 is not None) == ("state" in OPS[op].signature({}).attrs)


def test_every_file_gives_a_function_of_its_name():
    files = {path.stem for path in Path(ops.__file__).parent.glob("*.py")} - {
        "__init__",
        "function",
        "acts",
        "xielu",
    }
    made = {ops.of(op).operation.__module__.rpartition(".")[2] for op in OPS}
    assert made == files


def test_a_function_that_nobody_wrote_is_named():
    with pytest.raises(
        UnsupportedError, match=r"cannot export Norn; known functions: Activation, Add, .*Norm"
    ):
        ops.of("Norn")


def test_a_function_has_as_many_parameters_as_its_weight():
    graph = float_graph(qk_norm=True)
    for node in graph.nodes:
        if parameters := ops.of(node.op).parameters:
            assert parameters(graph, node) == graph.array(node.inputs[1]).size


def test_a_scale_goes_through_as_many_functions_as_let_it():
    rng = np.random.default_rng(0)
    graph = Graph(
        nodes=[
            Node("Linear", ("x", "w", "b"), ("a",), name="first"),
            Node("Gated", ("a",), ("c",), {"act": "silu"}, name="inner"),
            Node("Gated", ("c",), ("d",), {"act": "silu"}, name="outer"),
            Node("Linear", ("d", "v", "e"), ("y",), name="last"),
        ],
        constants={
            name: Tensor.of(rng.normal(size=size).astype(np.float32))
            for name, size in {"w": (20, 7), "b": 20, "v": (3, 5), "e": 3}.items()
        },
    )
    (fold,) = smooth.folds(graph)
    assert (fold.linear.name, fold.source.name) == ("last", "first")
    assert [node.name for node in fold.between] == ["outer", "inner"]
    assert not fold.gated
    x = rng.normal(size=(1, 4, 7)).astype(np.float32)
    found = []
    for _ in range(2):
        env = {"x": x}
        execute.run(execute.prepare(graph, graph.nodes), env)
        found.append(env["y"])
        smooth.apply(graph, fold, np.linspace(0.5, 4, 5).astype(np.float32))
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-5)


def test_bodies_that_differ_are_overloads_and_equal_ones_are_shared(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from flatlm.export.onnx_functions import Bodies
    from flatlm.export.onnx_writer import write_onnx

    norm = ops.of("Norm")
    assert norm.body is not None

    def body(node: Node) -> str:
        text = norm.body(node)
        return text.replace("y = Mul (scaled, weight)", "y = Add (scaled, weight)") if odd(node) else text

    def odd(node: Node) -> bool:
        return node.name.endswith("mlp.norm")

    graph = float_graph(qk_norm=True)
    write_onnx(graph, tmp_path)
    monkeypatch.setitem(ops._FUNCTIONS, "Norm", dataclasses.replace(norm, body=body))
    bodies = Bodies(graph.nodes)
    norms = [node for node in graph.nodes if node.op == "Norm"]
    assert [bodies.overload(node) for node in norms] == ["2" if odd(node) else "" for node in norms]
    functions = bodies.functions()
    assert len(functions) == len(FLOAT - set(STANDARD)) + 1
    ids = random_tokens(5)[None]
    before = _logits(onnxruntime, tmp_path, graph, ids)
    write_onnx(graph, tmp_path)
    assert [node.op for node in read_onnx(tmp_path / "model.onnx").nodes] == [n.op for n in graph.nodes]
    assert np.abs(_logits(onnxruntime, tmp_path, graph, ids) - before).max() > 0.1


def _logits(onnxruntime, folder: Path, graph: Graph, ids: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    empty = {name: np.zeros((1, 2, 0, 4), np.float32) for name in graph.inputs if name.startswith("past")}
    feeds = {"input_ids": ids, "position_ids": np.arange(ids.shape[1])[None], **empty}
    return session.run(["logits"], feeds)[0]
