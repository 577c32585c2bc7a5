"""Activations of a gate: kernels and ONNX bodies give the reference's bits, near the exact formulas."""

from __future__ import annotations

import numpy as np
import pytest

from flatlm.export.ops import of
from flatlm.export.ops.gated import _ACTS as EXPORTED
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
        assert np.isfinite(reference.ACTS[act](LARGE)).all()
    assert reference.ACTS[act](LARGE)[3] == LARGE[3]


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
    )  # fmt: skip
    run([one], [(0, m, 0)], 64, threads)
    assert same_bits(out[:, :columns], reference.gated(x, act))
    assert (out[:, columns:wide] == 0).all()
    assert (out[:, wide:] == 7).all()


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize(("m", "columns"), [(1, 5), (3, 70), (90, 37)])
@pytest.mark.parametrize("act", EXACT)
def test_quantization_takes_the_gate_in(act, m, columns, by_token):
    rng, keep, n = np.random.default_rng(m), list[np.ndarray](), 20
    x = np.clip(gates(m, columns), -30, 30)
    limit = np.full(columns, 127, np.int32)
    integers = Integers(limit, 127, None if by_token else np.float32(11.0))
    weights, scale = rng.integers(-127, 128, (n, columns)), rng.random(n).astype(np.float32)
    rows, out = zeros(keep, (m, padded(2 * columns, 16) + 16)), zeros(keep, (m, padded(n, 16)))
    rows[:, : 2 * columns] = x
    digits = digit_buffers(m, [integers], keep)
    packed = Weights(_aligned(layout.pack(weights, 8)), 8, scale, np.zeros(n, np.float32))
    source = Rows(rows, ops.GATED, act=ops.ACTS[act])
    records = [
        quantize_record(integers, source, digits, keep, by_row=False),
        product_record(integers, packed, out, digits, keep),
    ]
    run(records, [(0, m, 0)], integers.scratch, 2)
    gated = reference.gated(x, act)
    if by_token:
        steps, step = reference.quantize_token(gated, limit, 127)
    else:
        steps, step = reference.quantize(gated, np.float32(11.0), limit), None
    acc = reference.integer_product(steps, weights)
    assert same_bits(out[:, :n], reference.scale_product(acc, scale, np.zeros(n, np.float32), step))


@pytest.mark.parametrize("act", EXACT)
def test_the_onnx_body_gives_the_references_bits(act):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tests.test_functions import call

    x = gates(6, 50)[None]
    (y,) = call("Gated", {"gate_up": x}, act=act)
    assert same_bits(y[0], reference.gated(x[0], act))


@pytest.mark.parametrize("act", EXACT)
def test_slopes_are_those_of_finite_differences(act):
    rng = np.random.default_rng(4)
    x, towards = 3 * rng.standard_normal((2, 5, 40)), rng.standard_normal((1, 2, 5, 20))
    node = Node("Gated", ("x",), ("y",), {"act": act}, "n")
    function, graph, step = of("Gated"), Graph([node]), 1e-5 * rng.standard_normal(x.shape)
    (gradient,) = function.backward(graph, node, {"x": x}, towards)
    gated = function.operation(graph, node)
    moved = [float(np.vdot(towards, gated(x + sign * step)[0])) for sign in (1, -1)]
    assert np.vdot(gradient, step) == pytest.approx((moved[0] - moved[1]) / 2, rel=1e-5)
