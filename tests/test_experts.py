"""Experts: kernels and ONNX bodies give the reference's bits, whatever tokens go to which of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.export import execute, ops
from flatlm.kernels_arm import expert_layout, expert_reference, layout, reference
from flatlm.kernels_arm.expert_records import (
    Choice,
    ExpertWeights,
    expert_digits,
    expert_records,
    route_records,
    sum_record,
)
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.records import Integers, Rows, zeros
from flatlm.kernels_arm.team import aligned
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.errors import FormatError
from flatlm.runtime.format.functions import check_graph
from flatlm.runtime.format.graph import Graph, Tensor
from flatlm.runtime.format.widths import check_values
from tests.float_experts import float_experts
from tests.single_ops import run
from tests.tiny_graphs import CONTEXT, HEAD_SIZE, KV_HEADS, ROUTES, VOCABULARY, matrix, quantized_graph


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.int32), b.view(np.int32))


# ------------------------------------------------------------------------------------------------- routing
CHOICES = [
    Choice(1, 1, "softmax"),
    Choice(5, 2, "softmax", normalize=False, scale=2.5),
    Choice(37, 8, "softmax", floor=1e-20),
    Choice(16, 4, "topk_softmax"),
    Choice(64, 17, "topk_softmax"),
    Choice(12, 3, "sigmoid", select=np.linspace(1, -1, 12).astype(np.float32), groups=4, keep=2),
    Choice(20, 6, "sigmoid", normalize=False, groups=2, keep=1),
]


def referred(one: Choice, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return expert_reference.route(
        logits, one.kept, one.kind, one.select, one.normalize, one.scale, one.floor, one.groups, one.keep
    )


def exact(one: Choice, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One token in float64, by the definition."""
    z = logits.astype(np.float64)
    p = {
        "softmax": np.exp(z - z.max()) / np.exp(z - z.max()).sum(),
        "sigmoid": 1 / (1 + np.exp(-z)),
        "topk_softmax": z,
    }[one.kind]
    score = p if one.select is None else p + one.select
    size = one.experts // one.groups
    best = [np.sort(score[g * size : (g + 1) * size])[-2:].sum() for g in range(one.groups)]
    open_groups = sorted(range(one.groups), key=lambda g: -best[g])[: one.keep]
    able = [e for e in range(one.experts) if one.groups == 1 or e // size in open_groups]
    chosen = sorted(able, key=lambda e: (-score[e], e))[: one.kept]
    shares = p[chosen]
    if one.kind == "topk_softmax":
        shares = np.exp(shares - shares.max()) / np.exp(shares - shares.max()).sum()
    elif one.normalize:
        shares = shares / max(shares.sum(), one.floor)
    return np.array(chosen), shares * one.scale


def random_logits(one: Choice, tokens: int) -> np.ndarray:
    """Every other token's are whole numbers, of which many are equal."""
    logits = np.random.default_rng(one.experts).standard_normal((tokens, one.experts)) * 3
    logits[::2] = np.rint(logits[::2] / 2)
    return logits.astype(np.float32)


@pytest.mark.parametrize("one", CHOICES, ids=lambda one: f"{one.kept}of{one.experts}-{one.kind}")
def test_the_reference_routes_by_the_definition(one):
    logits = random_logits(one, 40)[1::2]  # of equal ones, rounding would choose
    experts, shares = referred(one, logits)
    for token, row in enumerate(logits):
        chosen, weights = exact(one, row)
        assert np.array_equal(experts[token], chosen)
        np.testing.assert_allclose(shares[token], weights, rtol=1e-5)


def test_of_equal_experts_the_lower_numbers_are_chosen():
    logits = np.array([[1, 2, 2, 0, 2, 1]], np.float32)
    for kind in ("softmax", "sigmoid", "topk_softmax"):
        assert referred(Choice(6, 4, kind), logits)[0].tolist() == [[1, 2, 4, 0]]


def table_of(one: Choice, tokens: int) -> np.ndarray:
    return np.zeros((1, padded(one.table(tokens), layout.ROWS)), np.int32)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 9, 70])
@pytest.mark.parametrize("one", CHOICES, ids=lambda one: f"{one.kept}of{one.experts}-{one.kind}")
def test_routing_equals_the_reference(one, tokens, threads):
    logits, keep = random_logits(one, tokens), []
    rows, shares = (zeros(keep, (tokens, padded(n, 16) + 16)) for n in (one.experts, one.kept))
    rows[:, : one.experts] = logits
    rows[:, one.experts :] = 1e9  # what stands there is nobody's
    table = table_of(one, tokens)
    run(route_records(one, rows, table, shares, keep), [(0, tokens, 0)], one.scratch, threads)
    experts, expected = referred(one, logits)
    assert same_bits(shares[:, : one.kept], expected)
    used, words, choices = table[0, 0], table[0, 16:], tokens * one.kept
    chosen = words[4 * one.experts :][:choices]
    assert np.array_equal(chosen, experts.reshape(-1))
    order = words[4 * one.experts + choices :][:choices]
    assert np.array_equal(order, np.argsort(chosen, kind="stable"))
    assert np.array_equal(words[4 * one.experts + 2 * choices :][:choices][order], np.arange(choices))
    by_expert = words[: 4 * used].reshape(-1, 4)
    assert np.array_equal(by_expert[:, 0], np.unique(chosen))
    assert np.array_equal(by_expert[:, 2], np.unique(chosen, return_counts=True)[1])


def test_experts_of_no_numbers_stay_within_their_arrays():
    one, tokens, keep = Choice(8, 3, "softmax"), 4, []
    rows, shares = (zeros(keep, (tokens, 32)) for _ in range(2))
    rows[:] = np.nan
    table = table_of(one, tokens)
    run(route_records(one, rows, table, shares, keep), [(0, tokens, 0)], one.scratch)
    assert table[0, 16 + 32 :][:12].min() >= 0
    assert table[0, 16 + 32 :][:12].max() < 8


# ------------------------------------------------------------------------------------------------ products
def native(x, choice: np.ndarray, experts: int, matrices, bits, scale, bias, limit, shares, threads):
    """The sum of a token's experts: x float32 [m, k], or of rows of their own [m, K, k] → [m, n]."""
    (tokens, kept), n, keep = choice.shape, matrices[0].shape[0], []
    integers = Integers(limit, 127, None)
    packed = expert_layout.pack(matrices, bits)
    data = aligned(packed.packed.nbytes)
    data[:] = packed.packed.reshape(-1).view(np.uint8)
    weights = ExpertWeights(data, bits, scale, bias, packed.starts, packed.delta, packed.value)
    each = kept if x.ndim == 3 else 1
    if each > 1:  # rows of experts stand sorted by expert
        x = x.reshape(tokens * kept, -1)[np.argsort(choice.reshape(-1), kind="stable")]
    rows = zeros(keep, (len(x), integers.columns + 16))
    rows[:, : x.shape[-1]] = x
    out, total = zeros(keep, (tokens * kept, padded(n, 16) + 16)), zeros(keep, (tokens, padded(n, 16) + 16))
    logits, held = (
        zeros(keep, (tokens, padded(experts, 16) + 16)),
        zeros(keep, (tokens, padded(kept, 16) + 16)),
    )
    for rank in range(kept):  # so that routing makes this very choice
        np.put_along_axis(logits, choice[:, rank : rank + 1], 100.0 - rank, 1)
    one = Choice(experts, kept, "topk_softmax")
    table = table_of(one, tokens)
    weighted = zeros(keep, held.shape)
    weighted[:, :kept] = shares
    digits = expert_digits(tokens * kept, [integers], experts, keep)
    records = route_records(one, logits, table, held, keep)
    records += expert_records(
        integers,
        weights,
        Rows(rows),
        table,
        out,
        digits,
        keep,
        each=each,
        spread=0 if each > 1 else kept,
    )
    records.append(sum_record(weighted, out, table, total, n, kept, keep))
    run(records, [(0, tokens, 0)], max(integers.scratch, one.scratch, 8 * kept), threads)
    return total[:, :n]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("wide", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("tokens", "skewed", "own"), [(1, False, False), (5, False, True), (40, False, False), (90, True, True)]
)
def test_products_of_experts_equal_the_reference(tokens, skewed, own, bits, wide, threads):
    experts, kept, n, k = 6, 3, 37, 70
    rng = np.random.default_rng(tokens + bits)
    matrices = [matrix(rng, n, k, bits, excess=n if bits == 4 else 0) for _ in range(experts)]
    scale, bias = (rng.standard_normal((experts, n)).astype(np.float32) for _ in range(2))
    limit = np.where(rng.random(k) < wide, 127 * 50, 127).astype(np.float32)
    x = rng.standard_normal((tokens, kept, k) if own else (tokens, k)).astype(np.float32) * 3
    choice = np.array([rng.choice(experts, kept, replace=False) for _ in range(tokens)])
    if skewed:
        choice[:] = [4, 0, 2]  # all to the same, in this order
    shares = rng.random((tokens, kept)).astype(np.float32)
    found = native(x, choice, experts, matrices, bits, scale, bias, limit, shares, threads)
    rows = np.empty((tokens, kept, n), np.float32)
    for token in range(tokens):
        for rank, e in enumerate(choice[token]):
            row = x[token, rank] if own else x[token]
            whole, step = reference.quantize_token(row[None], limit.astype(np.int32), 127)
            acc = reference.integer_product(whole, matrices[e])
            rows[token, rank] = reference.scale_product(acc, scale[e], bias[e], step)[0]
    assert same_bits(found, expert_reference.expert_sum(rows, shares))


@pytest.mark.parametrize("bits", [4, 8])
def test_an_expert_is_unpacked_without_the_others(bits):
    rng = np.random.default_rng(bits)
    matrices = [matrix(rng, 37, 70, bits, excess=e if bits == 4 else 0) for e in range(5)]
    packed = expert_layout.pack(matrices, bits)
    assert packed.packed.shape[0] == 5 * 3
    for e, weights in enumerate(matrices):
        assert np.array_equal(expert_layout.unpack(packed, e, 37, 70, bits), weights)
    if bits == 4:  # and all at once, as one matrix
        whole = layout.totals_of(packed.packed, 5 * 48, 70, 4, packed.delta, packed.value)
        assert np.array_equal(whole.reshape(5, 48, 70)[:, :37], np.array(matrices))
        position = np.cumsum(packed.delta, dtype=np.int64)[packed.starts[:-1]]
        assert np.array_equal(position, np.arange(15) * 16 * 80)


# ------------------------------------------------------------------------------------------- whole graphs
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("option", ROUTES)
def test_onnxruntime_gives_the_bits_of_the_reference(tmp_path, option, signed):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from flatlm.export.onnx_writer import write_onnx

    graph = write_onnx(quantized_graph(0, "float32", "token", option), tmp_path)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, CONTEXT)
    expected = NumpyBackend(SimpleNamespace(graph=graph)).forward(ids, CONTEXT)
    options = onnxruntime.SessionOptions()
    kind = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(signed, np.uint8))
    options.add_external_initializers(["signed_activations"], [kind])
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    for cut in ([CONTEXT], [5, 1, 1, 17]):
        past = {name: np.zeros((1, KV_HEADS, 0, HEAD_SIZE), np.float32) for name in graph.inputs[2:]}
        rows, at = [], 0
        for size in cut:
            feeds = {"input_ids": ids[None, at : at + size], "position_ids": np.arange(at, at + size)[None]}
            logits, *present = session.run(None, {**feeds, **past})
            past, at = dict(zip(past, present, strict=True)), at + size
            rows.append(logits[0])
        assert same_bits(np.concatenate(rows), expected)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "topk_softmax"])
def test_a_float_graph_is_what_its_file_says(tmp_path, kind):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from flatlm.export.onnx_writer import write_onnx

    graph = float_experts(kind=kind, **{} if kind == "topk_softmax" else {"normalize": 1})
    ids = np.random.default_rng(0).integers(0, 40, (2, 9))
    write_onnx(graph, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    past = {name: np.zeros((2, 2, 0, 4), np.float32) for name in graph.inputs[2:]}
    feeds = {"input_ids": ids, "position_ids": np.tile(np.arange(9), (2, 1)), **past}
    np.testing.assert_allclose(session.run(["logits"], feeds)[0], execute.logits(graph, ids), atol=3e-4)


@pytest.mark.parametrize(
    "route",
    [
        {"kind": "softmax", "normalize": 1},
        {"kind": "softmax", "scale": 2.0},
        {"kind": "sigmoid", "normalize": 1, "scale": 1.5},
        {"kind": "sigmoid"},
        {"kind": "topk_softmax"},
    ],
    ids=str,
)
def test_gradients_of_shares_are_those_of_small_steps(route):
    graph = float_experts(**route)
    node = next(node for node in graph.nodes if node.op == "Route")
    node = replace(node, attrs={"experts": 5, "kept": 2, **route})
    logits = np.random.default_rng(1).standard_normal((1, 6, 5)).astype(np.float32)
    function, y = ops.of("Route"), np.random.default_rng(2).standard_normal((1, 1, 6, 2)).astype(np.float32)
    choice, _ = function.operation(graph, node)(logits)
    env = {node.inputs[0]: logits, node.outputs[0]: choice}
    (found,) = function.backward(graph, node, env, np.zeros(()), y)
    for e in range(5):
        step = np.zeros_like(logits)
        step[..., e] = 1e-2
        ends = [function.operation(graph, node)(logits + sign * step) for sign in (1, -1)]
        kept = [(c == choice).all(-1) for c, _ in ends]
        slope = ((ends[0][1] - ends[1][1]) * y[0] / 2e-2).sum(-1)
        where = kept[0] & kept[1]
        np.testing.assert_allclose(found[0][..., e][where], slope[where], atol=2e-3)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cuts", [[1, 4, 0, 3], [2, 2, 6, 1], [5, 0, 0, 0]], ids=str)
def test_guesses_with_every_cut_of_acceptance_leave_the_plain_logits(cuts, threads):
    """A pass over rows of which some were wrong guesses, cut back, is as if they had not been."""
    graph = quantized_graph(3, "int8", "token", "topk_experts")
    ids, wrong = np.random.default_rng(4).integers(0, VOCABULARY, (2, CONTEXT))
    expected = NumpyBackend(SimpleNamespace(graph=graph)).forward(ids[:20], 20)
    backend, at, rows = NativeBackend(SimpleNamespace(graph=graph), threads=threads), 0, []
    for taken in [*cuts, 20]:
        taken = min(taken, 20 - at)
        guessed = np.concatenate([ids[at : at + taken], wrong[: min(3, CONTEXT - at - taken)]])
        rows.append(backend.forward(guessed, len(guessed))[:taken])
        at += taken
        assert backend.truncate(at) == at
    assert same_bits(np.concatenate(rows), expected)
    backend.close()


# ----------------------------------------------------------------------------------------------- bad files
def damaged(option: str, name: str, change) -> Graph:
    graph = quantized_graph(0, "float32", "token", option)
    graph.constants[name] = Tensor.of(change(graph.array(name).copy()))
    return graph


def shifted(array: np.ndarray) -> np.ndarray:
    array[3] = array[2]
    return array


@pytest.mark.parametrize("change", [shifted, lambda a: a[:-1], lambda a: a + 1, lambda a: -a], ids=range(4))
def test_starts_of_the_excess_that_leave_it_are_refused(change):
    graph = damaged(
        "experts", "layers.0.mlp.experts.gate_up.excess_start", lambda a: change(a).astype(np.int32)
    )
    with pytest.raises(FormatError, match="does not tell where the excess of 18 panels begins"):
        check_graph(graph)


@pytest.mark.parametrize(
    ("attrs", "match"),
    [
        ({"groups": 4}, "2 of 4 groups of 6 experts do not divide"),
        ({"keep": 4}, "4 of 3 groups"),
        ({"groups": 6}, "2 experts of 2 groups of 1"),
        ({"kept": 5}, "5 experts of 2 groups of 2"),
        ({"kind": "best"}, "'kind' is 'best'"),
    ],
    ids=str,
)
def test_a_route_that_cannot_be_is_refused(attrs, match):
    graph = quantized_graph(0, "float32", "token", "sigmoid_experts")
    graph.nodes = [replace(n, attrs={**n.attrs, **attrs}) if n.op == "Route" else n for n in graph.nodes]
    with pytest.raises(FormatError, match=match):
        check_graph(graph)


def test_rows_of_experts_are_not_taken_for_a_stream():
    graph = quantized_graph(0, "float32", "token", "experts")
    graph.nodes = [
        replace(node, inputs=("layers.0.mlp.experts.down", *node.inputs[1:])) if node.name == "norm" else node
        for node in graph.nodes
    ]
    with pytest.raises(FormatError, match=r"x 'layers.0.mlp.experts.down' is rows of experts of 20 × 2"):
        check_values(graph)
