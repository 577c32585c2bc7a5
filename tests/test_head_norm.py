"""HeadNorm: the kernel and the ONNX body give the reference's bits, which has the models' formula."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.export.archs import build_graph
from flatlm.export.ops import of
from flatlm.export.sources import open_source
from flatlm.kernels_arm import ops, reference
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.records import held, record, zeros
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.errors import FormatError, SourceError
from flatlm.runtime.format.functions import check_graph
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.widths import check_values
from tests.single_ops import run
from tests.test_archs import evaluate
from tests.tiny_graphs import quantized_graph
from tests.tiny_models import tiny_model


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(np.ascontiguousarray(a).view(np.int32), np.ascontiguousarray(b).view(np.int32))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("m", "heads", "size"), [(1, 1, 2), (5, 3, 16), (19, 2, 128), (9, 6, 20), (4, 5, 62)]
)
def test_heads_are_normed_in_place_and_nothing_beside_them(m, heads, size, threads):
    rng, keep, first, columns = np.random.default_rng(size), list[np.ndarray](), 6, heads * size
    rows = zeros(keep, (m, padded(columns + 2 * first, 16) + 16))
    rows[:] = before = rng.standard_normal(rows.shape).astype(np.float32)
    weight = rng.random(size, np.float32) + 0.5
    x = rows[:, first:]
    one = record(
        ops.HEAD_NORM, ROWS_IN=x.ctypes.data, ROWS_IN_STRIDE=rows.strides[0], ROWS_COLUMNS=size,
        ROWS_HEADS=heads, ROWS_FLOATS=held(keep, np.array([1e-3, size]), np.float32),
        ROWS_WEIGHT=held(keep, weight, np.float32, padded(size, 16)),
    )  # fmt: skip
    run([one], [(0, m, 0)], 64, threads)
    expected = before.copy()
    inside = expected[:, first : first + columns].reshape(m, heads, size)
    expected[:, first : first + columns] = reference.norm(inside, weight, 1e-3).reshape(m, -1)
    assert same_bits(rows, expected)


def test_the_reference_is_the_formula_of_the_models():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((7, 3, 20)).astype(np.float32), rng.random(20, np.float32)
    wide = x.astype(np.float64)
    exact = weight * (wide / np.sqrt(np.mean(wide**2, -1, keepdims=True) + 1e-6))
    np.testing.assert_allclose(reference.norm(x, weight, 1e-6), exact, rtol=3e-7)


def test_the_onnx_body_gives_the_references_bits():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tests.test_functions import call

    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((2, 3, 5, 20)).astype(np.float32), rng.random(20, np.float32)
    (y,) = call("HeadNorm", {"x": x}, {"weight": Tensor.of(weight)}, epsilon=1e-3)
    assert same_bits(y, reference.norm(x, weight, 1e-3))


def test_the_gradient_is_that_of_finite_differences():
    rng = np.random.default_rng(2)
    x, weight = rng.standard_normal((2, 3, 5, 20)), rng.random(20, np.float32) + 0.5
    graph = Graph([Node("HeadNorm", ("x", "w"), ("y",), {"epsilon": 1e-3}, "n")], {"w": Tensor.of(weight)})
    function, (node,) = of("HeadNorm"), graph.nodes
    towards, step = rng.standard_normal((1, *x.shape)), 1e-4 * rng.standard_normal(x.shape)
    (gradient,) = function.backward(graph, node, {"x": x}, towards)
    run_one = function.operation(graph, node)
    moved = [float(np.vdot(towards, run_one(x + sign * step)[0])) for sign in (1, -1)]
    assert np.vdot(gradient, step) == pytest.approx((moved[0] - moved[1]) / 2, rel=1e-5)


def test_the_plan_has_a_record_for_each_and_no_more_copies():
    backend = NativeBackend(SimpleNamespace(graph=quantized_graph(0, "int8", "static", "qk_norm")))
    codes = list(backend.plan.ops[:, 0])
    backend.close()
    assert codes.count(ops.HEAD_NORM) == 4
    assert ops.NORM_ROWS not in codes


def test_a_weight_of_another_size_is_refused_by_name():
    graph = quantized_graph(0, "float32", "static", "qk_norm")
    at = next(i for i, node in enumerate(graph.nodes) if node.op == "HeadNorm")
    graph.constants["odd"] = Tensor.of(np.ones(6, np.float32))
    graph.nodes[at] = replace(graph.nodes[at], inputs=(graph.nodes[at].inputs[0], "odd"))
    check_graph(graph)
    with pytest.raises(FormatError, match=r"norm_q.*x .* is heads of 6 × 4, the node reads heads of 6 × 6"):
        check_values(graph)


def test_qwen3_norms_queries_and_keys_before_they_are_rotated(tmp_path):
    folder = tiny_model(tmp_path, architecture="qwen3", layers=1)
    graph = build_graph(open_source(str(folder)))
    names = [node.name.rpartition(".")[2] for node in graph.layers[0]]
    assert names[2:7] == ["heads", "q_norm", "k_norm", "rotate_q", "rotate_k"]
    ids = np.arange(12)[None]
    before = evaluate(graph, ids)
    name = "layers.0.attention.k_norm.weight"
    graph.constants[name] = Tensor.of(2 * graph.array(name))
    assert np.abs(evaluate(graph, ids) - before).max() > 0.01


def test_qwen3_says_the_size_of_its_heads(tmp_path):
    folder = tiny_model(tmp_path, architecture="qwen3", config={"head_dim": None})
    with pytest.raises(SourceError, match="head_dim = None, expected an integer"):
        build_graph(open_source(str(folder)))
