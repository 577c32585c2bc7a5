"""Rings: a window's cache has places for the window alone, and no bit is another one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.runtime import ops
from flatlm.runtime.backends import Segment, native
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.format.widths import values_of
from flatlm.runtime.memory import cache_bytes
from flatlm.runtime.states import places as rings
from tests.recurrent_graphs import recurrent_graph
from tests.tiny_graphs import VOCABULARY, WINDOW, quantized_graph

CONTEXT, STEP, CUT = 620, 32, 30


@pytest.fixture(scope="module", autouse=True)
def short_steps():
    """Steps of a few tokens, so that a ring is short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "BATCH", STEP)
        patch.setattr(rings, "MOST_STEP", STEP)
        patch.setattr(rings, "CUT", CUT)
        yield


@pytest.fixture(scope="module", params=["float32", "int8"])
def artifact(request, short_steps):
    graph = quantized_graph(0, request.param, "static", "window")
    graph.metadata["context_length"] = str(CONTEXT)
    return SimpleNamespace(graph=graph)


@pytest.fixture(scope="module")
def texts():
    return np.random.default_rng(1).integers(0, VOCABULARY, (2, CONTEXT))


@pytest.fixture(scope="module")
def expected(artifact, texts):
    return [NumpyBackend(artifact).forward(ids, CONTEXT) for ids in texts]


@pytest.fixture(scope="module")
def backends(artifact):
    made = [NativeBackend(artifact, threads=threads, slots=2, context=CONTEXT) for threads in (1, 2)]
    yield made
    for backend in made:
        backend.close()


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.int32), b.view(np.int32))


def test_a_ring_has_places_for_window_step_and_cut_and_nothing_grows_with_the_context(artifact, backends):
    graph = artifact.graph
    first, second = ops.states_of(graph, values_of(graph)).values()
    assert (first.window, second.window) == (WINDOW, 0)
    assert first.bytes(CONTEXT) == first.bytes(1 << 20) < second.bytes(CONTEXT)
    assert cache_bytes(graph, CONTEXT) == first.bytes(CONTEXT) + second.bytes(CONTEXT)
    for state, described in zip(backends[0].plan.states, (first, second), strict=True):
        held = sum(array.nbytes for array in vars(state).values() if isinstance(array, np.ndarray))
        assert held == 2 * described.bytes(CONTEXT)
    assert [state.floors is None for state in backends[0].plan.states] == [False, True]


def test_a_context_that_is_no_longer_than_a_ring_has_none(artifact):
    described = next(iter(ops.states_of(artifact.graph, values_of(artifact.graph)).values()))
    assert described.allocate(64, 1).floors is None


def test_a_cache_that_somebody_sees_whole_is_no_ring():
    graph = quantized_graph(0, "float32", "static", "window")
    (attend,) = (node for node in graph.nodes if "window" in node.attrs)
    del attend.attrs["window"]
    assert [one.window for one in ops.states_of(graph, values_of(graph)).values()] == [0, 0]


STEPS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([1, 1, 3, 8, 32, 33, 150]), st.integers(0, 200)),
    min_size=1,
    max_size=14,
)


@settings(max_examples=8, deadline=None)
@given(steps=STEPS)
def test_cut_back_and_gone_on_the_rows_are_those_of_one_reading(backends, texts, expected, steps):
    """Where the window is gone, all is read again."""
    for backend in backends:
        for slot in range(2):
            backend.truncate(0, slot)
        for slot, size, back in steps:
            at = backend.positions[slot]
            size = min(size, CONTEXT - at)
            if size:
                (rows,) = backend.forward_many([Segment(slot, texts[slot][at : at + size], size)])
                assert same_bits(rows, expected[slot][at : at + size])
            wanted = max(at + size - back, 0)
            kept = backend.truncate(wanted, slot)
            assert kept in (wanted, 0)
            assert kept == wanted or back > CUT
        for slot in range(2):
            at = backend.positions[slot]
            if at < CONTEXT:
                (rows,) = backend.forward_many([Segment(slot, texts[slot][at:], 40)])
                assert same_bits(rows, expected[slot][max(at, CONTEXT - 40) :])


@pytest.mark.parametrize("length", [600, 590, 572, 40])
def test_a_ring_is_copied_and_saved_where_its_window_is_there(artifact, backends, texts, expected, length):
    one, two = backends
    for backend in backends:
        for slot in range(2):
            backend.truncate(0, slot)
    one.forward_many([Segment(0, texts[0][:600])])
    saved = one.save(0, length)
    assert bool(saved) == (length > 40)
    one.copy(0, 1, length)
    assert one.positions[1] == (length if saved else 0)
    (rows,) = one.forward_many([Segment(1, texts[0][one.positions[1] :], 20)])
    assert same_bits(rows, expected[0][-20:])
    if saved:
        two.forward_many([Segment(1, texts[1])])
        two.load(1, length, saved)
        (rows,) = two.forward_many([Segment(1, texts[0][length:], 20)])
        assert same_bits(rows, expected[0][-20:])


@pytest.mark.parametrize("mixer", ["conv", "delta"])
@pytest.mark.parametrize("back", [3, 16, 17, 150])
def test_a_ring_beside_a_state_that_sums_up_is_cut_where_both_can_be(mixer, back):
    graph = recurrent_graph(mixer, 2, context=CONTEXT)
    (attend,) = (node for node in graph.nodes if node.op == "Attend")
    attend.attrs["window"] = WINDOW
    artifact, ids = SimpleNamespace(graph=graph), np.random.default_rng(3).integers(0, VOCABULARY, 176)
    expected = NumpyBackend(artifact).forward(ids, 176)
    backend = NativeBackend(artifact, threads=2, context=CONTEXT)
    assert all(state.floors is not None for state in backend.plan.states)
    backend.forward(ids)
    kept = backend.truncate(176 - back)
    assert kept == (176 - back if back <= 176 % STEP else 0)  # a step's tokens
    assert same_bits(backend.forward(ids[kept:], 176), expected[kept:])
    backend.close()
