"""Centered norms, norms that add, and norms of all heads: reference, kernels and ONNX bodies agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flatlm.export.ops import of
from flatlm.kernels_arm import ops, reference
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.records import held, record, zeros
from flatlm.runtime.errors import FormatError
from flatlm.runtime.format.functions import check_graph
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.widths import check_values
from tests.single_ops import run
from tests.test_scores import same_bits
from tests.tiny_graphs import quantized_graph


def test_a_centered_norm_is_a_layer_norm_without_a_bias():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((7, 20)).astype(np.float32) + 3, rng.random(20, np.float32)
    wide = x.astype(np.float64)
    exact = weight * (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(reference.norm(x, weight, 1e-6, True), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(("m", "k"), [(1, 1), (5, 16), (19, 37), (3, 130)])
def test_rows_are_normed_as_the_reference_has_it(m, k, centered, adds):
    rng, keep = np.random.default_rng(k), list[np.ndarray]()
    wide = padded(k, 16)
    rows, out = zeros(keep, (m, wide + 16)), zeros(keep, (m, wide + 16))
    rows[:] = rng.standard_normal(rows.shape)  # what stands beyond a row's columns may be anything
    stream, x = rng.standard_normal((m, k)).astype(np.float32), rows[:, :k].copy()
    weight = rng.random(k, np.float32) + 0.5
    if adds:
        out[:, :k] = stream
    one = record(
        ops.NORM_ROWS, ROWS_IN=rows.ctypes.data, ROWS_IN_STRIDE=rows.strides[0], ROWS_OUT=out.ctypes.data,
        ROWS_OUT_STRIDE=out.strides[0], ROWS_COLUMNS=k, ROWS_CENTERED=int(centered),
        ROWS_OTHER=out.ctypes.data if adds else 0, ROWS_FLOATS=held(keep, np.array([1e-3, k]), np.float32),
        ROWS_WEIGHT=held(keep, weight, np.float32, wide),
    )  # fmt: skip
    run([one], [(0, m, 0)], 64, 2)
    normed = reference.norm(x, weight, 1e-3, centered)
    assert same_bits(out[:, :k], stream + normed if adds else normed)
    assert (out[:, k:] == 0).all()


@pytest.mark.parametrize("scope", ["head", "own", "all"])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(("m", "heads", "size"), [(1, 1, 2), (5, 3, 16), (9, 6, 20)])
def test_heads_are_normed_by_their_scope(m, heads, size, centered, scope):
    rng, keep, columns = np.random.default_rng(size), list[np.ndarray](), heads * size
    rows = zeros(keep, (m, padded(columns, 16) + 16))
    rows[:] = before = rng.standard_normal(rows.shape).astype(np.float32)
    weight = rng.random(size if scope == "head" else columns, np.float32) + 0.5
    joint = scope == "all"
    one = record(
        ops.HEAD_NORM, ROWS_IN=rows.ctypes.data, ROWS_IN_STRIDE=rows.strides[0],
        ROWS_COLUMNS=columns if joint else size, ROWS_HEADS=1 if joint else heads,
        ROWS_FLOATS=held(keep, np.array([1e-3, columns if joint else size]), np.float32),
        ROWS_WEIGHT=held(keep, weight, np.float32, padded(weight.size, 16) + 16),
        ROWS_WEIGHT_STEP=4 * size if scope == "own" else 0, ROWS_CENTERED=int(centered),
    )  # fmt: skip
    run([one], [(0, m, 0)], 64, 2)
    given = before[:, :columns].reshape(m, *((1, columns) if joint else (heads, size)))
    own = weight.reshape(heads, size) if scope == "own" else weight
    before[:, :columns] = reference.norm(given, own, 1e-3, centered).reshape(m, -1)
    assert same_bits(rows, before)


@pytest.mark.parametrize("scope", ["head", "own", "all"])
@pytest.mark.parametrize("centered", [{}, {"centered": 1}], ids=["", "centered"])
def test_the_onnx_bodies_give_the_references_bits(centered, scope):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tests.test_functions import call

    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 3, 5, 20)).astype(np.float32) + 1
    weight = rng.random(20 if scope == "head" else 60, np.float32)
    attrs = {"epsilon": 1e-3, **centered, **({} if scope == "head" else {"scope": scope})}
    (y,) = call("HeadNorm", {"x": x}, {"weight": Tensor.of(weight)}, **attrs)
    tokens = x.swapaxes(1, 2)
    if scope == "all":
        wanted = reference.norm(tokens.reshape(2, 5, 60), weight, 1e-3, bool(centered)).reshape(tokens.shape)
    else:
        own = weight.reshape(-1, 20)
        wanted = reference.norm(tokens, own, 1e-3, bool(centered))
    assert same_bits(y.swapaxes(1, 2), wanted)
    (y,) = call("Norm", {"x": x[0]}, {"weight": Tensor.of(weight[:20])}, epsilon=1e-3, **centered)
    assert same_bits(y, reference.norm(x[0], weight[:20], 1e-3, bool(centered)))


@pytest.mark.parametrize(
    "attrs", [{"centered": 1}, {"scope": "own"}, {"scope": "all", "centered": 1}], ids=str
)
def test_gradients_are_those_of_finite_differences(attrs):
    rng = np.random.default_rng(2)
    x, weight = rng.standard_normal((2, 3, 5, 20)), rng.random(60 if "scope" in attrs else 20, np.float32)
    node = Node("HeadNorm", ("x", "w"), ("y",), {"epsilon": 1e-3, **attrs}, "n")
    graph, function = Graph([node], {"w": Tensor.of(weight)}), of("HeadNorm")
    towards, step = rng.standard_normal((1, *x.shape)), 1e-4 * rng.standard_normal(x.shape)
    (gradient,) = function.backward(graph, node, {"x": x}, towards)
    run_one = function.operation(graph, node)
    moved = [float(np.vdot(towards, run_one(x + sign * step)[0])) for sign in (1, -1)]
    assert np.vdot(gradient, step) == pytest.approx((moved[0] - moved[1]) / 2, rel=1e-4)


@pytest.mark.parametrize("op", ["Norm", "HeadNorm"])
def test_what_is_neither_centered_nor_not_is_refused(op):
    graph = quantized_graph(0, "float32", "static", "qk_norm", "centered")
    at = next(i for i, node in enumerate(graph.nodes) if node.op == op)
    graph.nodes[at] = replace(graph.nodes[at], attrs={**graph.nodes[at].attrs, "centered": 2})
    with pytest.raises(FormatError, match="centered is 2, not 1 or absent"):
        check_graph(graph)


def test_weights_that_are_not_of_all_heads_are_refused_by_number():
    graph = quantized_graph(0, "float32", "static", "qk_norm", "all")
    graph.constants["layers.0.attention.norm_q.weight"] = Tensor.of(np.ones(8, np.float32))
    check_graph(graph)
    with pytest.raises(FormatError, match=r"norm_q.*8 weights for 6 heads of 4 columns"):
        check_values(graph)
