"""Convolutions and matrices as states: all backends have one result, wherever they are cut."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.kernels_arm import ops, recurrent, reference
from flatlm.kernels_arm.records import held, record, zeros
from flatlm.runtime.backends import Segment
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.states.conv_rows import ConvRows
from flatlm.runtime.states.matrices import Matrices
from tests.recurrent_graphs import MIXERS, recurrent_graph
from tests.single_ops import run
from tests.tiny_graphs import VOCABULARY

LENGTH = 110  # more than three times what a state can be cut back by


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(np.ascontiguousarray(a).view(np.int32), np.ascontiguousarray(b).view(np.int32))


def random_floats(rng, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


# ---- the reference


def test_softplus_is_log_of_one_and_e_to_the_x():
    x = np.linspace(-86, 200, 40001).astype(np.float32)
    np.testing.assert_allclose(recurrent.softplus(x), np.logaddexp(0, x.astype(np.float64)), rtol=4e-7)
    assert recurrent.softplus(np.float32([-200, 0, 2.0**90])).tolist() == [
        0,
        pytest.approx(np.log(2)),
        2.0**90,
    ]


@pytest.mark.parametrize("delta", [True, False])
def test_linear_attention_is_the_recurrence_of_the_models(delta):
    rng, (m, j, h, k, v) = np.random.default_rng(0), (30, 2, 4, 20, 12)
    q, key = (random_floats(rng, m, j, k) / np.float32(k**0.5) for _ in range(2))
    value, fade, share = (
        random_floats(rng, m, h, v),
        rng.random((m, h), np.float32),
        rng.random((m, h), np.float32),
    )
    first = random_floats(rng, h, k, v)
    found, last = recurrent.linear_attention(q, key, value, fade, share, first, delta=delta)
    state = first.astype(np.float64)
    for t in range(m):
        state *= fade[t][:, None, None]
        for head in range(h):
            k_t, u = key[t, head // 2].astype(np.float64), value[t, head].astype(np.float64)
            u = share[t, head] * (u - k_t @ state[head] if delta else u)
            state[head] += np.outer(k_t, u)
            np.testing.assert_allclose(found[t, head], q[t, head // 2] @ state[head], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(last, state, rtol=2e-5, atol=2e-6)


def test_a_convolution_is_the_weighted_sum_of_the_last_rows():
    rng = np.random.default_rng(1)
    history, weight, bias = random_floats(rng, 12, 5), random_floats(rng, 5, 4), random_floats(rng, 5)
    found = recurrent.conv(history, weight, bias)
    for t in range(9):
        np.testing.assert_allclose(
            found[t], (history[t : t + 4].T * weight).sum(1) + bias, rtol=1e-5, atol=1e-6
        )
    assert same_bits(recurrent.conv(history, weight, bias, "silu"), reference.silu(found))


# ---- the kernels


def rows_of(keep: list, x: np.ndarray) -> np.ndarray:
    """The rows in a buffer with something else behind them."""
    rows = zeros(keep, (len(x), x.shape[1] + 37))
    rows[:] = 7
    rows[:, : x.shape[1]] = x
    return rows


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("channels", "taps", "silu"), [(1, 2, 0), (16, 3, 1), (70, 4, 0), (45, 7, 1)])
@pytest.mark.parametrize("cuts", [(1,) * 6, (5, 1, 40, 2), (90, 3)], ids=str)
def test_the_convolution_has_the_references_bits(channels, taps, silu, cuts, threads):
    rng, m = np.random.default_rng(channels), sum(cuts)
    x, weight, bias = (random_floats(rng, *shape) for shape in ((m, channels), (channels, taps), (channels,)))
    padded = -(-channels // 16) * 16
    by_tap = np.zeros((taps, padded), np.float32)
    by_tap[:, :channels] = weight.T
    state, at, found = ConvRows(channels, taps).allocate(m, 1), 0, []
    for tokens in cuts:
        keep: list[np.ndarray] = []
        rows, out = rows_of(keep, x[at : at + tokens]), zeros(keep, (tokens, padded + 16))
        one = record(
            ops.CONV, C_IN=rows.ctypes.data, C_IN_STRIDE=rows.strides[0], C_OUT=out.ctypes.data,
            C_OUT_STRIDE=out.strides[0], C_COLUMNS=channels, C_TAPS=taps, C_SILU=silu,
            C_WEIGHT=held(keep, by_tap, np.float32), C_BIAS=held(keep, bias, np.float32, padded),
            C_ZEROS=zeros(keep, (padded,)).ctypes.data, **state.fields("C"),
        )  # fmt: skip
        run([one], [(0, tokens, at)], 8 * taps, threads)
        assert not out[:, channels:].any()
        found.append(out[:, :channels].copy())
        at += tokens
    history = np.concatenate([np.zeros((taps - 1, channels), np.float32), x])
    assert same_bits(np.concatenate(found), recurrent.conv(history, weight, bias, "silu" if silu else ""))


SIZES = [(1, 1, 1, 1), (4, 2, 20, 12), (2, 1, 32, 40), (3, 3, 128, 64)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cuts", [(1,) * 4, (40, 1, 2, 33, 70, 1)], ids=str)
@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize(("heads", "key_heads", "k", "v"), SIZES)
def test_linear_attention_has_the_references_bits(heads, key_heads, k, v, delta, cuts, threads):
    rng, m, keep = np.random.default_rng(k), sum(cuts), list[np.ndarray]()
    widths = {"Q": key_heads * k, "K": key_heads * k, "V": heads * v, "DT": heads, "BETA": heads}
    given = {name: random_floats(rng, m, width) for name, width in widths.items()}
    given["Q"], given["K"] = given["Q"] / np.float32(k**0.5), given["K"] / np.float32(k**0.5)
    bias, decay, skip = random_floats(rng, heads), -rng.random(heads, np.float32), random_floats(rng, heads)
    state = Matrices(heads, key_heads, k, v).allocate(m, 1)
    floats, at, found = np.concatenate([bias, decay, skip, [0.001]]), 0, []
    for tokens in cuts:
        fields = {}
        for name, x in given.items():
            if delta or name != "BETA":
                rows = rows_of(keep, x[at : at + tokens])
                fields |= {f"L_{name}": rows.ctypes.data, f"L_{name}_STRIDE": rows.strides[0]}
        out = zeros(keep, (tokens, heads * v + 16))
        one = record(
            ops.LINEAR_ATTENTION, L_OUT=out.ctypes.data, L_OUT_STRIDE=out.strides[0], L_HEADS=heads,
            L_KEY_HEADS=key_heads, L_KEY_SIZE=k, L_VALUE_SIZE=v, L_FLOATS=held(keep, floats, np.float32),
            **fields, **state.fields("L"),
        )  # fmt: skip
        settle = record(ops.SETTLE, S_FLOORS=state.floors.array.ctypes.data)
        run([one, settle], [(0, tokens, at)], ops.linear_attention_scratch(k), threads)
        assert not out[:, heads * v :].any()
        found.append(out[:, : heads * v].copy())
        at += tokens
    size, fade = recurrent.gates(given["DT"], bias, decay, 0.001)
    q, key, value = (given[name].reshape(m, -1, width) for name, width in (("Q", k), ("K", k), ("V", v)))
    share, first = recurrent.sigmoid(given["BETA"]) if delta else size, np.zeros((heads, k, v), np.float32)
    expected, _ = recurrent.linear_attention(q, key, value, fade, share, first, delta=delta)
    if not delta:
        expected = expected + skip[:, None] * value
    assert same_bits(np.concatenate(found), expected.reshape(m, -1))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("m", "groups", "size"), [(1, 1, 2), (9, 3, 16), (4, 5, 37)])
def test_groups_are_normed_in_place_each_with_its_weights(m, groups, size, threads):
    rng, keep = np.random.default_rng(size), list[np.ndarray]()
    x, weight = random_floats(rng, m, groups * size), random_floats(rng, groups * size)
    rows = rows_of(keep, x)
    one = record(
        ops.HEAD_NORM, ROWS_IN=rows.ctypes.data, ROWS_IN_STRIDE=rows.strides[0], ROWS_COLUMNS=size,
        ROWS_HEADS=groups, ROWS_FLOATS=held(keep, np.array([1e-3, size]), np.float32),
        ROWS_WEIGHT_STEP=4 * size, ROWS_WEIGHT=held(keep, weight, np.float32, groups * size + 16),
    )  # fmt: skip
    run([one], [(0, m, 0)], 64, threads)
    expected = reference.norm(x.reshape(m, groups, size), weight.reshape(groups, size), 1e-3)
    assert same_bits(rows[:, : groups * size], expected.reshape(m, -1))
    assert (rows[:, groups * size :] == 7).all()


@pytest.mark.parametrize(("m", "columns"), [(1, 1), (5, 32), (3, 45)])
def test_rows_are_multiplied_by_rows(m, columns):
    rng, keep = np.random.default_rng(columns), list[np.ndarray]()
    a, b = random_floats(rng, m, columns), random_floats(rng, m, columns)
    padded = -(-columns // 16) * 16
    left, right, out = rows_of(keep, a), rows_of(keep, b), zeros(keep, (m, padded))
    one = record(
        ops.MULTIPLY_ROWS, ROWS_IN=left.ctypes.data, ROWS_IN_STRIDE=left.strides[0], ROWS_OUT=out.ctypes.data,
        ROWS_OUT_STRIDE=out.strides[0], ROWS_COLUMNS=columns, ROWS_OTHER=right.ctypes.data,
        ROWS_OTHER_STRIDE=right.strides[0],
    )  # fmt: skip
    run([one], [(0, m, 0)], 64)
    assert same_bits(out[:, :columns], a * b)
    assert not out[:, columns:].any()


# ---- whole models


@pytest.fixture(scope="module", params=MIXERS)
def mixer(request):
    return request.param


@pytest.fixture(scope="module")
def artifact(mixer):
    return SimpleNamespace(graph=recurrent_graph(mixer, context=LENGTH))


@pytest.fixture(scope="module")
def texts():
    return np.random.default_rng(1).integers(0, VOCABULARY, (3, LENGTH))


@pytest.fixture(scope="module")
def expected(artifact, texts):
    """Logits of every position of every text, each read alone and at once by the reference."""
    return [NumpyBackend(artifact).forward(ids, LENGTH) for ids in texts]


@pytest.fixture(scope="module")
def backends(artifact):
    made = [NativeBackend(artifact, threads=threads, slots=3) for threads in (1, 2)]
    yield made
    for backend in made:
        backend.close()


@pytest.mark.parametrize("activations", ["static", "token"])
@pytest.mark.parametrize("kv", ["float32", "int8"])
@pytest.mark.parametrize("cuts", [(24,), (1,) * 24, (5, 1, 17, 1)], ids=str)
def test_native_logits_are_the_references(mixer, kv, activations, cuts):
    artifact = SimpleNamespace(graph=recurrent_graph(mixer, 3, kv, activations))
    ids, at = np.random.default_rng(2).integers(0, VOCABULARY, 24), 0
    expected = NumpyBackend(artifact).forward(ids, 24)
    backend = NativeBackend(artifact, threads=2)
    for size in cuts:
        assert same_bits(backend.forward(ids[at : at + size], size), expected[at : at + size])
        at += size
    backend.close()


@pytest.mark.parametrize("make", [NativeBackend, NumpyBackend])
def test_the_reference_may_be_cut_anywhere_too(artifact, texts, expected, make):
    backend, at = make(artifact), 0
    for size in (1, 1, 30, 7, 50, 21):
        assert same_bits(backend.forward(texts[0][at : at + size], size), expected[0][at : at + size])
        at += size
    backend.close()


STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([1, 1, 2, 5, 9, 33, 60]), st.integers(0, 60)), max_size=12
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, wrong=st.integers(1, VOCABULARY - 1))
def test_a_step_of_which_some_is_accepted_leaves_what_reading_that_leaves(
    backends, texts, expected, steps, wrong
):
    """As drafting does: right ids, then wrong ones, which are taken back; what is lost is read again."""
    for backend in backends:
        for slot in range(3):
            backend.truncate(0, slot)
        for slot, size, right in steps:
            at = backend.positions[slot]
            size = min(size, LENGTH - at)
            right = min(right, size)
            ids = texts[slot][at : at + size].copy()
            ids[right:] = (ids[right:] + wrong) % VOCABULARY
            if size:
                (rows,) = backend.forward_many([Segment(slot, ids, size)])
                assert same_bits(rows[:right], expected[slot][at : at + right])
                kept = backend.truncate(at + right, slot)
                assert kept == (at + right if right >= size - ops.KEPT or not size - right else 0)
        for slot in range(3):
            at = backend.positions[slot]
            if at < LENGTH:
                (rows,) = backend.forward_many([Segment(slot, texts[slot][at:], LENGTH - at)])
                assert same_bits(rows, expected[slot][at:])


@pytest.mark.parametrize("length", [100, 99, 90, 78, 77])
def test_a_state_is_copied_to_where_it_can_be_cut_back(backends, texts, expected, length):
    for backend in backends:
        backend.truncate(0)
        backend.forward(texts[0][:100])
        backend.copy(0, 1, length)
        assert backend.positions[1] == (length if length >= 100 - ops.KEPT else 0)
        rest = texts[0][backend.positions[1] : LENGTH]
        (rows,) = backend.forward_many([Segment(1, rest, 10)])
        assert same_bits(rows, expected[0][-10:])
        assert same_bits(backend.forward(texts[0][100:], 10), expected[0][100:])  # the source is as it was


@pytest.mark.parametrize("cut", [23, 20, 12, 11])
def test_numpy_and_onnxruntime_go_back_to_where_the_last_step_began(mixer, tmp_path, cut):
    pytest.importorskip("onnxruntime")
    from flatlm.export.onnx_writer import write_onnx
    from flatlm.runtime.backends.ort import OrtBackend

    graph = write_onnx(recurrent_graph(mixer), tmp_path)
    artifact = SimpleNamespace(graph=graph, path=tmp_path)
    ids = np.random.default_rng(4).integers(0, VOCABULARY, 24)
    expected = NumpyBackend(artifact).forward(ids, 24)
    for backend in (OrtBackend(artifact, threads=1, slots=2), NumpyBackend(artifact, slots=2)):
        found = [backend.forward(ids[:5], 5), backend.forward(ids[5:12], 7), backend.forward(ids[12:], 12)]
        assert same_bits(np.concatenate(found), expected)
        backend.copy(0, 1, 24)
        for slot in range(2):
            kept = backend.truncate(cut, slot)
            assert kept == (12 if cut >= 12 else 0)
            (rows,) = backend.forward_many([Segment(slot, ids[kept:], 24 - kept)])
            assert same_bits(rows, expected[kept:])


def test_an_interrupt_before_a_step_is_noted_loses_no_bit(artifact, texts, expected):
    backend = NativeBackend(artifact, threads=1)
    backend.forward(texts[0][:3])
    backend._positions[0] = 0  # as if the note had not been made
    assert backend.position == 0  # a short step is simply not there
    assert same_bits(backend.forward(texts[0][:50], 50), expected[0][:50])
    backend._positions[0] = 0
    assert backend.position == 50 - ops.KEPT  # of a long one, what can no longer be taken back
    assert backend.truncate(0) == 0
    assert same_bits(backend.forward(texts[0], LENGTH), expected[0])
    backend.close()


@pytest.mark.parametrize("length", [60, 59, 45, 28])
def test_a_saved_state_goes_on_in_another_backend(artifact, texts, expected, length):
    one, two = NativeBackend(artifact, threads=1, slots=2), NativeBackend(artifact, threads=2, slots=3)
    one.forward_many([Segment(1, texts[0][:60])])
    saved = one.save(1, length)
    assert one.save(1, 27) == []
    two.forward_many([Segment(2, texts[1][:90])])
    two.load(2, length, saved)
    assert list(two.positions) == [0, 0, length]
    (rows,) = two.forward_many([Segment(2, texts[0][length:], LENGTH)])
    assert same_bits(rows, expected[0][length:])
    for wrong in (length + 33, 5):  # what is not of that length, or longer than its updates
        with pytest.raises(ValueError, match="do not fit states summed up to 28"):
            two.load(2, wrong, saved)
        assert two.positions[2] == 0
    with pytest.raises(ValueError, match=r"are not of|does not fit"):
        two.load(2, length, saved[:-1])
    assert same_bits(two.forward_many([Segment(2, texts[2], LENGTH)])[0], expected[2])
    one.close()
    two.close()
