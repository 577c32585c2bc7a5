"""A drafter's head over some ids: what it says of those is what the whole head says, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from runtime.backends.native import NativeBackend
from runtime.drafting import short_head
from runtime.drafting.model import share
from runtime.drafting.short_head import ShortHead, with_short_head
from runtime.functions import named
from runtime.graph import Graph, Tensor
from runtime.llm import LLM
from tests.test_nested import exported
from tests.tiny_graphs import CONTEXT, HIDDEN, VOCABULARY, matrix, packed, quantized_graph

FIRST, MET = 16, 16


@dataclass(frozen=True)
class Model:
    graph: Graph


def with_head(bits: int, excess: int = 0) -> Model:
    """A tiny model whose head has weights of its own."""
    rng, graph = np.random.default_rng(5), quantized_graph()
    tensor, delta, value = packed(matrix(rng, VOCABULARY, HIDDEN, bits, excess), bits)
    own = {"head.w": tensor, "head.d": Tensor.of(delta), "head.v": Tensor.of(value)}
    roles = {**named(graph.nodes[-1]), "weight": "head.w", "excess_delta": "head.d", "excess_value": "head.v"}
    head = replace(graph.nodes[-1], inputs=tuple(roles.values()))
    return Model(replace(graph, nodes=[*graph.nodes[:-1], head], constants={**dict(graph.constants), **own}))


def opened(model: Model) -> NativeBackend:
    return NativeBackend(model, threads=1, context=CONTEXT)


@pytest.mark.parametrize("bits", [4, 8])
def test_known_ids_have_the_logits_of_the_whole_head(bits):
    model, rng = with_head(bits), np.random.default_rng(1)
    whole, short = opened(model), with_short_head(model, opened, FIRST, MET)
    assert isinstance(short, ShortHead)
    met: list[int] = []
    for _ in range(40):
        if whole.position > CONTEXT - 4:
            whole.truncate(3)
            short.truncate(3)
        ids = rng.integers(0, VOCABULARY, rng.integers(1, 5))
        met += sorted({int(i) for i in ids if i >= FIRST} - set(met[-MET:]))
        wanted = int(rng.integers(1, 4))
        theirs, ours = whole.forward(ids, wanted), short.forward(ids, wanted)
        known = np.isin(np.arange(VOCABULARY), [*range(FIRST), *met[-MET:]])
        assert ours.shape == theirs.shape
        assert np.array_equal(ours[:, known], theirs[:, known])
        assert np.all(ours[:, ~known] == -np.inf)
    assert len(met) > 2 * MET  # places were taken again
    whole.close()
    short.close()


def test_more_ids_than_there_are_places():
    short = with_short_head(with_head(8), opened, FIRST, MET)
    row = short.forward(np.arange(VOCABULARY - CONTEXT, VOCABULARY))[0]
    assert np.isfinite(row).sum() == FIRST + MET
    short.close()


def test_a_head_that_is_short_or_has_excess_stays_whole():
    for model, first in ((with_head(8), 48), (with_head(4, excess=9), FIRST)):
        backend = with_short_head(model, opened, first, MET)
        assert isinstance(backend, NativeBackend)
        backend.close()


@pytest.mark.parametrize("temp", [0.0, 1.5])
@pytest.mark.parametrize("draft", ["nested", "auto:nested", "cascade:nested,maxgram:3,2/4:3"])
def test_answers_are_the_plain_ones(tmp_path_factory, monkeypatch, draft, temp):
    monkeypatch.setattr(with_short_head, "__defaults__", (32, 16))
    made: list[ShortHead] = []
    monkeypatch.setattr(short_head, "ShortHead", lambda *parts: made.append(ShortHead(*parts)) or made[-1])
    path = exported(tmp_path_factory.mktemp("source"), "nested")
    sampling = {"n": 40, "temp": temp, "seed": 3}
    plain = LLM(path, ctx=128).generate("once upon a time", **sampling)
    drafted = LLM(path, ctx=128, draft=draft).generate("once upon a time", **sampling)
    assert made
    assert drafted.tokens == plain.tokens


def test_an_id_without_a_logit_has_no_chance():
    logits = np.array([0.0, -np.inf, 0.0], np.float32)
    assert [share(logits, token) for token in range(3)] == [0.5, 0.0, 0.5]
