"""Activations, gated or plain: kernels and ONNX bodies give the reference's bits, near exact formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flatlm.export.ops import of
from flatlm.export.ops.acts import ACTS as EXPORTED
from flatlm.kernels_arm import ops, reference
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.records import (
    Integers,
    Rows,
    Weights,
    digit_buffers,
    product_record,
    quantize_record,
    record,
    zeros,
)
from flatlm.runtime.format.graph import Graph, Node
from tests.single_ops import _aligned, layout, run

EXACT = {  # of float64
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}
LARGE = np.float32([0, 1e-30, -1e-30, 3.4e38, -3.4e38, 1e20, -1e20, 88, -88, 9.5, -9.5])


def gates(m: int, columns: int) -> np.ndarray:
    """float32 [m, 2 · columns]: gates of all sizes, and ups."""
    rng = np.random.default_rng(columns)
    x = rng.standard_normal((m, 2 * columns)).astype(np.float32)
    x[:, :columns] *= np.exp(rng.standard_normal((m, columns))).astype(np.float32) * 3
    x.reshape(-1)[: min(LARGE.size, columns)] = LARGE[:columns]
    return x


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(np.ascontiguousarray(a).view(np.int32), np.ascontiguousarray(b).view(np.int32))


def test_everyone_knows_the_same_acts():
    assert set(ops.ACTS) == set(reference.ACTS) == set(EXPORTED) == set(EXACT)


@pytest.mark.parametrize("act", EXACT)
def test_the_reference_is_the_exact_formula(act):
    x = np.linspace(-12, 12, 4001).astype(np.float32)
    exact = EXACT[act](x.astype(np.float64))
    np.testing.assert_allclose(reference.ACTS[act](x), exact, rtol=3e-6, atol=1e-7)
    with np.errstate(over="ignore"):
        found = reference.ACTS[act](LARGE)
    assert np.isfinite(found).all() or act == "relu2"
    assert found[3] == {"relu2": np.inf, "sigmoid": 1}.get(act, LARGE[3])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("m", "columns"), [(1, 1), (5, 16), (19, 37), (3, 130)])
@pytest.mark.parametrize("act", EXACT)
def test_rows_are_gated_as_the_reference_has_it_and_zeros_follow(act, m, columns, threads):
    keep, wide = list[np.ndarray](), padded(columns, 16)
    rows, out = zeros(keep, (m, padded(2 * columns, 16) + 16)), zeros(keep, (m, wide + 16))
    rows[:, : 2 * columns] = x = gates(m, columns)
    out[:] = 7
    one = record(
        ops.GATE_ROWS, ROWS_IN=rows.ctypes.data, ROWS_IN_STRIDE=rows.strides[0], ROWS_OUT=out.ctypes.data,
        ROWS_OUT_STRIDE=out.strides[0], ROWS_COLUMNS=columns, ROWS_ACT=ops.ACTS[act],
        ROWS_OTHER=rows.ctypes.data + 4 * columns, ROWS_OTHER_STRIDE=rows.strides[0],
    )  # fmt: skip
    run([one], [(0, m, 0)], 64, threads)
    assert same_bits(out[:, :columns], reference.gated(x, act))
    assert (out[:, columns:wide] == 0).all()
    assert (out[:, wide:] == 7).all()


@pytest.mark.parametrize(("m", "columns"), [(1, 1), (19, 37), (3, 130)])
@pytest.mark.parametrize("act", EXACT)
def test_rows_of_an_activation_are_the_references_and_zeros_follow(act, m, columns):
    keep, wide = list[np.ndarray](), padded(columns, 16)
    rows, out = zeros(keep, (m, wide + 16)), zeros(keep, (m, wide + 16))
    rows[:, :columns] = x = np.clip(gates(m, columns)[:, :columns], -1e18, 1e18)
    out[:] = 7
    one = record(
        ops.ACT_ROWS, ROWS_IN=rows.ctypes.data, ROWS_IN_STRIDE=rows.strides[0], ROWS_OUT=out.ctypes.data,
        ROWS_OUT_STRIDE=out.strides[0], ROWS_COLUMNS=columns, ROWS_ACT=ops.ACTS[act],
    )  # fmt: skip
    run([one], [(0, m, 0)], 64, 2)
    assert same_bits(out[:, :columns], reference.ACTS[act](x))
    assert (out[:, columns:wide] == 0).all()
    assert (out[:, wide:] == 7).all()


@pytest.mark.parametrize(("gates_", "size"), [(1, 37), (3, 1), (5, 16), (4, 20), (2, 64)])
@pytest.mark.parametrize("act", ["sigmoid", "silu"])
def test_a_gates_column_may_be_for_several_of_the_other(act, gates_, size):
    rng, keep, m, columns = np.random.default_rng(size), list[np.ndarray](), 7, gates_ * size
    rows, out = zeros(keep, (m, padded(columns, 16) + 16)), zeros(keep, (m, padded(columns, 16) + 16))
    gate = rng.standard_normal((m, gates_)).astype(np.float32)
    rows[:, :columns] = x = rng.standard_normal((m, columns)).astype(np.float32)
    one = record(
        ops.GATE_ROWS, ROWS_IN=gate.ctypes.data, ROWS_IN_STRIDE=gate.strides[0], ROWS_OUT=out.ctypes.data,
        ROWS_OUT_STRIDE=out.strides[0], ROWS_COLUMNS=columns, ROWS_ACT=ops.ACTS[act], ROWS_HEADS=gates_,
        ROWS_OTHER=rows.ctypes.data, ROWS_OTHER_STRIDE=rows.strides[0],
    )  # fmt: skip
    run([one], [(0, m, 0)], 64, 2)
    expected = reference.output_gate(x, gate, act)
    assert same_bits(out[:, :columns], expected)
    exact = x * np.repeat(EXACT[act](gate.astype(np.float64)), size, -1)
    np.testing.assert_allclose(expected, exact, rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize(("m", "columns"), [(1, 5), (3, 70), (90, 37)])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("act", EXACT)
def test_quantization_takes_the_activation_in(act, gated, m, columns, by_token):
    rng, keep, n = np.random.default_rng(m), list[np.ndarray](), 20
    x = np.clip(gates(m, columns), -30, 30)
    limit = np.full(columns, 127, np.int32)
    integers = Integers(limit, 127, None if by_token else np.float32(11.0))
    weights, scale = rng.integers(-127, 128, (n, columns)), rng.random(n).astype(np.float32)
    rows, out = zeros(keep, (m, padded(2 * columns, 16) + 16)), zeros(keep, (m, padded(n, 16)))
    rows[:, : 2 * columns] = x
    digits = digit_buffers(m, [integers], keep)
    packed = Weights(_aligned(layout.pack(weights, 8)), 8, scale, np.zeros(n, np.float32))
    source = Rows(rows, ops.GATED if gated else ops.ACTED, act=ops.ACTS[act])
    records = [
        quantize_record(integers, source, digits, keep, by_row=False),
        product_record(integers, packed, out, digits, keep),
    ]
    run(records, [(0, m, 0)], integers.scratch, 2)
    active = reference.gated(x, act) if gated else reference.ACTS[act](x[:, :columns])
    if by_token:
        steps, step = reference.quantize_token(active, limit, 127)
    else:
        steps, step = reference.quantize(active, np.float32(11.0), limit), None
    acc = reference.integer_product(steps, weights)
    assert same_bits(out[:, :n], reference.scale_product(acc, scale, np.zeros(n, np.float32), step))


@pytest.mark.parametrize("act", EXACT)
def test_the_onnx_bodies_give_the_references_bits(act):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tests.test_functions import call

    x = gates(6, 50)[None]
    x[0, 0, : LARGE.size] = np.clip(LARGE, -1e18, 1e18)
    gate, up = x[..., :50], x[..., 50:]
    (gated,) = call("Gated", {"gate_up": x}, act=act)
    (active,) = call("Activation", {"x": gate}, act=act)
    (by_column,) = call("OutputGate", {"x": up, "gate": gate}, act=act)
    (by_five,) = call("OutputGate", {"x": up, "gate": gate[..., :10]}, act=act)
    assert same_bits(gated[0], reference.gated(x[0], act))
    assert same_bits(active[0], reference.ACTS[act](gate[0]))
    assert same_bits(by_column[0], reference.output_gate(up[0], gate[0], act))
    assert same_bits(by_five[0], reference.output_gate(up[0], gate[0, :, :10], act))


def moved(function, graph, node, env, name, step, towards) -> float:
    """What a small step of one input moves."""
    operation = function.operation(graph, node)
    both = [operation(*({**env, name: env[name] + sign * step}[i] for i in env))[0] for sign in (1, -1)]
    return float(np.vdot(towards, both[0]) - np.vdot(towards, both[1])) / 2


@pytest.mark.parametrize("act", EXACT)
@pytest.mark.parametrize(
    ("op", "columns"),
    [("Gated", [40]), ("Activation", [20]), ("OutputGate", [20, 20]), ("OutputGate", [20, 5])],
)
def test_slopes_are_those_of_finite_differences(op, columns, act):
    rng = np.random.default_rng(4)
    names = [f"x{i}" for i in range(len(columns))]
    env = {name: 3 * rng.standard_normal((2, 5, k)) for name, k in zip(names, columns, strict=True)}
    towards, node = rng.standard_normal((1, 2, 5, 20)), Node(op, tuple(names), ("y",), {"act": act}, "n")
    function, graph = of(op), Graph([node])
    gradients = function.backward(graph, node, env, towards)
    size = 1e-2 if act == "gelu" else 1e-5  # GELU is of float32
    for name, gradient in zip(names, gradients, strict=True):
        step = size * rng.standard_normal(env[name].shape)
        found = moved(function, graph, node, env, name, step, towards)
        assert np.vdot(gradient, step) == pytest.approx(found, rel=1e-2 if act == "gelu" else 1e-4)


NUMBERS = {"positive": 0.7, "negative": 1.4, "linear": 0.5}


def test_xielu_is_its_formula_and_the_backends_agree():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tests.test_functions import call

    x = np.concatenate([np.linspace(-12, 12, 4001), [0, 1e-30, -1e-30, -5e-7]]).astype(np.float32)[None, None]
    wide = x.astype(np.float64)
    exact = np.where(wide > 0, 0.7 * wide**2, 1.4 * (np.expm1(np.minimum(wide, -1e-6)) - wide)) + 0.5 * wide
    found = reference.xielu(x, *NUMBERS.values())
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=5e-7)
    (y,) = call("Activation", {"x": x}, act="xielu", **NUMBERS)
    assert same_bits(y, found)
    function, node = of("Activation"), Node("Activation", ("x",), ("y",), {"act": "xielu", **NUMBERS}, "n")
    (found,) = function.operation(Graph([node]), node)(wide)
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-12)
    step = 1e-6
    moved = [function.operation(Graph([node]), node)(wide + sign * step)[0] for sign in (1, -1)]
    (slope,) = function.backward(Graph([node]), node, {"x": wide}, np.ones((1, *x.shape)))
    away = np.abs(wide) > 1e-5  # from the kink
    found = (moved[0] - moved[1]) / (2 * step)
    np.testing.assert_allclose(slope[0][away], found[away], rtol=1e-4, atol=1e-6)


def test_the_kernel_of_xielu_gives_the_references_bits():
    keep, columns = list[np.ndarray](), 70
    rows, out = zeros(keep, (5, 96)), zeros(keep, (5, 96))
    rows[:, :columns] = x = np.clip(gates(5, columns)[:, :columns], -1e18, 1e18)
    numbers = np.array([*NUMBERS.values()], np.float32)
    one = record(
        ops.ACT_ROWS, ROWS_IN=rows.ctypes.data, ROWS_IN_STRIDE=rows.strides[0], ROWS_OUT=out.ctypes.data,
        ROWS_OUT_STRIDE=out.strides[0], ROWS_COLUMNS=columns, ROWS_ACT=ops.XIELU,
        ROWS_FLOATS=numbers.ctypes.data,
    )  # fmt: skip
    run([one], [(0, 5, 0)], 64, 2)
    assert same_bits(out[:, :columns], reference.xielu(x, *NUMBERS.values()))
