"""The prebuilt kernels on AArch64: the same bits as the numpy reference, as x86, and whatever the batch."""

from __future__ import annotations

import os
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.runtime.backends import Segment
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from tests.arm.expected import MODELS, PROMPT, graph_of, greedy_tokens, native_logits, tokens
from tests.tiny_graphs import CONTEXT

CUTS = ((24,), (1,) * 24, (5, 19), (3, 7, 2, 12), (16, 8), (2, 4, 8, 10))


@pytest.fixture(scope="module", params=MODELS, ids=str)
def model(request):
    return request.param


@pytest.fixture(scope="module")
def reference(model):
    backend = NumpyBackend(SimpleNamespace(graph=graph_of(model)))
    return backend.forward(tokens(model[0]), CONTEXT)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_native_logits_are_the_references_bit_for_bit(model, reference, cuts, threads):
    logits = native_logits(graph_of(model), tokens(model[0]), cuts, threads)
    np.testing.assert_array_equal(logits.view(np.int32), reference.view(np.int32))


@pytest.mark.parametrize("threads", [1, 2])
def test_sequences_side_by_side_give_the_references_bits(model, reference, threads):
    ids, parts = tokens(model[0]), ((5, 1, 1, 17), (1, 1, 13, 9), (9, 8, 1, 1), (0, 2, 1, 1))
    backend = NativeBackend(SimpleNamespace(graph=graph_of(model)), threads=threads, slots=len(parts))
    for step in zip(*parts, strict=True):
        read = list(backend.positions)
        joined = [(slot, read[slot], size) for slot, size in enumerate(step) if size]
        rows = backend.forward_many([Segment(slot, ids[at : at + size], size) for slot, at, size in joined])
        for (_, at, size), logits in zip(joined, rows, strict=True):
            expected = reference[at : at + size]
            np.testing.assert_array_equal(logits.view(np.int32), expected.view(np.int32))
    backend.copy(0, 3, 20)
    (logits,) = backend.forward_many([Segment(3, ids[20:], 4)])
    np.testing.assert_array_equal(logits.view(np.int32), reference[20:].view(np.int32))
    backend.close()


@pytest.mark.skipif("FLATLM_EXPECTED" not in os.environ, reason="FLATLM_EXPECTED names no file made on x86")
def test_logits_are_those_of_x86_bit_for_bit(model):
    with np.load(os.environ["FLATLM_EXPECTED"]) as file:
        expected = file[f"{model}"]
    logits = native_logits(graph_of(model), tokens(model[0]), (CONTEXT,), 2)
    np.testing.assert_array_equal(logits.view(np.int32), expected.view(np.int32))


@pytest.mark.skipif("FLATLM_EXPECTED" not in os.environ, reason="FLATLM_EXPECTED names no file made on x86")
@pytest.mark.parametrize("threads", [1, 2])
def test_greedy_tokens_are_those_of_x86(model, threads):
    with np.load(os.environ["FLATLM_EXPECTED"]) as file:
        expected = file[f"{model} greedy"].tolist()
    assert greedy_tokens(graph_of(model), tokens(model[0])[:PROMPT], threads) == expected


def test_nothing_here_could_have_compiled_a_kernel():
    assert find_spec("numba") is None
    assert find_spec("llvmlite") is None
