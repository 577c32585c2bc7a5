"""States: what they take, and a backend whose states cannot be cut back just anywhere."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.runtime import ops
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.format.widths import values_of
from flatlm.runtime.memory import cache_bytes, sequence_text
from flatlm.runtime.states import cut_back
from tests.recurrent_graphs import MIXERS, recurrent_graph
from tests.tiny_graphs import CONTEXT, LAYERS, VOCABULARY, quantized_graph


class Snapshots:
    """A state that can be cut back to every `every`-th position only."""

    context = CONTEXT

    def __init__(self, every: int) -> None:
        self.every, self.asked = every, []

    def cut_back(self, slot: int, length: int) -> int:
        self.asked.append((slot, length))
        return length - length % self.every

    def copy(self, source: int, target: int, length: int) -> None:
        self.asked.append((source, target, length))


@pytest.mark.parametrize(
    ("every", "length", "kept"),
    [([1], 7, 7), ([8], 7, 0), ([4], 7, 4), ([4, 1, 6], 23, 12), ([5, 7], 34, 0), ([], 7, 7)],
)
def test_all_states_are_cut_back_to_a_length_that_each_can_hold(every, length, kept):
    states = [Snapshots(one) for one in every]
    assert cut_back(states, 3, length) == kept
    assert all(state.asked[-1] == (3, kept) for state in states)


@pytest.mark.parametrize("kv", ["float32", "int8"])
def test_every_layer_has_a_state_that_says_its_bytes_beforehand(kv):
    graph = quantized_graph(0, kv)
    described = ops.states_of(graph, values_of(graph))
    assert list(described) == [f"layers.{i}.attention.append" for i in range(LAYERS)]
    for one in described.values():
        state = one.allocate(CONTEXT, 3)
        held = sum(array.nbytes for array in vars(state).values() if isinstance(array, np.ndarray))
        assert held == 3 * one.bytes(CONTEXT)
    assert cache_bytes(graph, CONTEXT) == sum(one.bytes(CONTEXT) for one in described.values())


@pytest.mark.parametrize("mixer", MIXERS)
def test_states_that_do_not_grow_say_their_bytes_beforehand(mixer):
    graph = recurrent_graph(mixer)
    described = ops.states_of(graph, values_of(graph))
    first = [f"layers.0.{mixer}.conv", *([f"layers.0.{mixer}.attend"] if mixer != "conv" else [])]
    assert list(described) == [*first, "layers.1.attention.append"]
    for name in first:
        one = described[name]
        held = [
            array.nbytes for array in vars(one.allocate(CONTEXT, 3)).values() if isinstance(array, np.ndarray)
        ]
        assert sum(held) == 3 * one.bytes(CONTEXT) == 3 * one.bytes(1 << 20)
    assert cache_bytes(graph, CONTEXT) == sum(one.bytes(CONTEXT) for one in described.values())


def test_the_memory_of_a_sequence_is_told_in_words():
    assert sequence_text(quantized_graph()) == "0.3 KB for each token"
    assert sequence_text(recurrent_graph("delta")) == "0.1 MB and 0.2 KB for each token"


@pytest.fixture(params=["float32", "int8"])
def artifact(request):
    return SimpleNamespace(graph=quantized_graph(0, request.param))


@pytest.mark.parametrize("backend_class", [NativeBackend, NumpyBackend])
def test_truncating_tells_what_is_left(artifact, backend_class):
    backend = backend_class(artifact, threads=1)
    backend.forward(np.arange(10))
    assert [backend.truncate(length) for length in (12, 7, 7, 9, 0)] == [10, 7, 7, 7, 0]
    backend.close()


def test_what_a_state_could_not_keep_is_read_again(artifact):
    ids = np.random.default_rng(0).integers(0, VOCABULARY, CONTEXT)
    expected = NumpyBackend(artifact).forward(ids, CONTEXT)
    backend = NativeBackend(artifact, threads=1, slots=2)
    backend.plan.states.append(Snapshots(8))
    backend.forward(ids[:20])
    kept = backend.truncate(19)
    assert (kept, backend.position) == (16, 16)
    np.testing.assert_array_equal(backend.forward(ids[kept:], CONTEXT - kept), expected[kept:])
    backend.copy(0, 1, CONTEXT)
    assert backend.plan.states[-1].asked == [(0, 19), (0, 16), (0, 1, CONTEXT)]
    backend.close()
