"""Vectors of texts: what the head sees, the same on all backends, alone and beside others."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.embedding import embed, headless
from flatlm.runtime.errors import BackendError, UsageError
from flatlm.runtime.llm import LLM
from flatlm.runtime.ops import named
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.test_nested import exported
from tests.tiny_graphs import CONTEXT, HIDDEN, VOCABULARY, quantized_graph
from tests.tiny_text import CHATML, FakeBackend, byte_level, write_folder

KINDS = [{}, {"activations": "token"}, {"kv": "int8"}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_vectors_are_what_the_head_multiplies(kind):
    graph, ids = quantized_graph(**kind), np.array([3, 1, 4, 1, 5])
    states = NumpyBackend(SimpleNamespace(graph=headless(graph))).forward(ids, 5)
    logits = NumpyBackend(SimpleNamespace(graph=graph)).forward(ids, 5)
    assert states.shape == (5, HIDDEN)
    node, roles = graph.head, named(graph.head)
    weights = graph.totals(node).astype(np.float64) * graph.array(roles["scale"])[:, None]
    if "inverse_scale" in roles:  # a step of the input belongs to the scale of an output
        weights *= float(graph.array(roles["inverse_scale"]).reshape(-1)[0])
    np.testing.assert_allclose(states @ weights.T + graph.array(roles["bias"]), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_native_vectors_are_numpys_bit_for_bit_and_do_not_depend_on_their_neighbours(kind, pooling):
    model = SimpleNamespace(graph=headless(quantized_graph(**kind)))
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, VOCABULARY, length).tolist() for length in (1, 7, 3, CONTEXT, 2)]
    expected = embed(NumpyBackend(model, context=CONTEXT), texts, pooling, False)
    for slots in (1, 2, 3):
        native = NativeBackend(model, threads=2, context=CONTEXT, slots=slots)
        for normalize in (False, True, False):
            found = embed(native, texts, pooling, normalize)
            if not normalize:
                assert found.tobytes() == expected.tobytes()
        native.close()


def test_a_vector_is_the_mean_or_the_last_of_its_tokens_and_has_length_1():
    backend = NumpyBackend(SimpleNamespace(graph=headless(quantized_graph())))
    rows = backend.forward(np.array([3, 1, 4]), 3)
    (mean,), (last,) = (embed(backend, [[3, 1, 4]], pooling, False) for pooling in ("mean", "last"))
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-6)
    assert last.tolist() == rows[-1].tolist()
    (unit,) = embed(backend, [[3, 1, 4]], "mean", True)
    np.testing.assert_allclose(unit, mean / np.linalg.norm(mean), rtol=1e-5)
    assert embed(backend, [], "mean", True).shape[0] == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("source"), "edge")


def test_a_model_embeds_one_text_or_several_between_its_answers(folder):
    with LLM(folder, threads=1, ctx=64, batch=2) as llm:
        answer = llm.generate("one", n=3).text
        vectors = llm.embed(["one", "two", "one"])
        assert (
            vectors.shape[0] == 3 and vectors[0].tolist() == vectors[2].tolist() == llm.embed("one").tolist()
        )
        assert llm.generate("one", n=3).text == answer
        with pytest.raises(UsageError, match="pooling 'max'"):
            llm.embed("one", pooling="max")
        with pytest.raises(UsageError, match="empty"):
            llm.embed("")
    with pytest.raises(UsageError, match="closed"):
        llm.embed("one")


def test_a_backend_that_runs_a_file_cannot_embed(tmp_path):
    tokenizer = load_tokenizer(write_folder(tmp_path, byte_level()))
    with pytest.raises(BackendError, match="native, numpy"):
        LLM.of(FakeBackend(), tokenizer, CHATML).embed("x")
