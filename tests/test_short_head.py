"""A drafter's head over some ids: what it says of those is what the whole head says, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from flatlm.runtime.backends import Backend
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.drafting import Guess, Offer, Place, short_head, spec
from flatlm.runtime.drafting.model import CLASSES, ModelDrafter
from flatlm.runtime.drafting.short_head import KnownRows, ShortHead, with_short_head
from flatlm.runtime.drafting.verify import invariant
from flatlm.runtime.errors import BackendError
from flatlm.runtime.format.graph import Graph, Tensor
from flatlm.runtime.generation.sampler import make_sampler
from flatlm.runtime.llm import LLM
from flatlm.runtime.ops import named
from flatlm.runtime.options import SamplingOptions
from tests.interrupts import interrupted_after
from tests.test_nested import exported
from tests.tiny_graphs import CONTEXT, HIDDEN, VOCABULARY, matrix, packed, quantized_graph

FIRST, MET = 16, 16


@dataclass(frozen=True)
class Model:
    graph: Graph


def with_head(bits: int, excess: int = 0, **kind: str) -> Model:
    """A tiny model whose head has weights of its own."""
    rng, graph = np.random.default_rng(5), quantized_graph(**kind)
    tensor, delta, value = packed(matrix(rng, VOCABULARY, HIDDEN, bits, excess), bits)
    own = {"head.w": tensor, "head.d": Tensor.of(delta), "head.v": Tensor.of(value)}
    roles = {**named(graph.nodes[-1]), "weight": "head.w", "excess_delta": "head.d", "excess_value": "head.v"}
    head = replace(graph.nodes[-1], inputs=tuple(roles.values()))
    return Model(replace(graph, nodes=[*graph.nodes[:-1], head], constants={**dict(graph.constants), **own}))


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("source"), "nested")


def opened(model: Model) -> NativeBackend:
    return NativeBackend(model, threads=1, context=CONTEXT)


def assert_equal(whole: np.ndarray, short: np.ndarray, ids: np.ndarray) -> None:
    assert short.shape == (len(whole), len(ids))
    assert np.array_equal(short, whole[:, ids])


@pytest.mark.parametrize("kind", [{"activations": "token"}, {"kv": "int8"}])
@pytest.mark.parametrize("bits", [4, 8])
def test_known_ids_have_the_logits_of_the_whole_head(bits, kind):
    model, rng = with_head(bits, **kind), np.random.default_rng(1)
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
        assert_equal(whole.forward(ids, wanted), short.forward(ids, wanted), short.ids)
        assert short.ids.tolist() == sorted({*range(FIRST), *met[-MET:]})
    assert len(met) > 2 * MET  # places were taken again
    whole.close()
    short.close()


def test_an_interrupt_leaves_every_known_id_with_its_own_row():
    model = with_head(8)
    whole, short = opened(model), with_short_head(model, opened, FIRST, MET)
    rng, interrupted = np.random.default_rng(2), 0
    for line in range(1, 200):
        ids = rng.integers(FIRST, VOCABULARY, 5)
        with interrupted_after(line % 17, KnownRows.meet) as came:
            short.forward(ids)
        interrupted += bool(came)
        whole.truncate(0)
        short.truncate(0)
        theirs, ours = whole.forward(ids[:1]), short.forward(ids[:1])
        assert {*range(FIRST), ids[0]} <= set(short.ids)
        assert np.all(np.diff(short.ids) > 0)
        assert_equal(theirs, ours, short.ids)
    assert interrupted > 100
    whole.close()
    short.close()


def test_ids_that_do_not_exist_are_refused_and_not_met():
    short = with_short_head(with_head(8), opened, FIRST, MET)
    for ids in ([VOCABULARY], [-1, 20]):
        with pytest.raises(BackendError, match="token ids"):
            short.forward(np.array(ids))
    assert short.forward(np.array([20])).shape == (1, FIRST + 1)
    assert short.ids.tolist() == [*range(FIRST), 20]
    short.close()


def test_more_ids_than_there_are_places():
    short = with_short_head(with_head(8), opened, FIRST, MET)
    assert short.forward(np.arange(VOCABULARY - CONTEXT, VOCABULARY)).shape == (1, FIRST + MET)
    short.close()


def test_a_head_that_is_short_or_has_excess_stays_whole():
    for model, first in ((with_head(8), 48), (with_head(4, excess=9), FIRST)):
        backend = with_short_head(model, opened, first, MET)
        assert isinstance(backend, NativeBackend)
        backend.close()


@pytest.mark.parametrize("rule", ["invariant", "rejection"])
@pytest.mark.parametrize("draft", ["nested", "auto:nested", "cascade:nested,maxgram:3,2/4:3"])
def test_answers_are_drafted_by_short_heads(nested, monkeypatch, draft, rule):
    monkeypatch.setattr(with_short_head, "__defaults__", (32, 16))
    made: list[ShortHead] = []
    assert spec.ShortHead is ShortHead  # it was imported before the class is replaced
    monkeypatch.setattr(short_head, "ShortHead", lambda *parts: made.append(ShortHead(*parts)) or made[-1])
    sampling = {"n": 60, "temp": 4.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3}
    plain = LLM(nested, ctx=128).generate("once upon a time", **sampling)
    drafted = LLM(nested, ctx=128, draft=draft, draft_rule=rule).generate("once upon a time", **sampling)
    assert len(made) == 1
    assert len(set(plain.tokens)) > 5
    assert rule == "rejection" or drafted.tokens == plain.tokens
    if draft.startswith("cascade"):
        sources = {source.name: source.accepted for source in drafted.timings.drafting.sources}
        assert sources["nested"] > 0


def test_a_drafter_is_as_large_as_what_it_reads_with_its_short_head(nested, monkeypatch):
    sizes = []
    for known in ((16384, 4096), (32, 16)):
        monkeypatch.setattr(with_short_head, "__defaults__", known)
        with LLM(nested, ctx=128, draft="nested") as llm:
            sizes.append(llm.speculator.leaves[0].size)
    assert 0 < sizes[1] < sizes[0] < 1


def greedy_drafter(backend: Backend | None = None, vocab: int = VOCABULARY) -> ModelDrafter:
    return ModelDrafter("small", backend or with_short_head(with_head(8), opened, FIRST, MET), vocab)


def reviewed(
    drafter: ModelDrafter, ids: list[int], draft: Sequence[Guess] = (), lenience: float = 1.0
) -> Guess:
    """The first token that comes of a review by a greedy model, in a sequence of its own."""
    state = drafter.begin(invariant(make_sampler(SamplingOptions())))
    ((first, *_),) = drafter.draft([Offer(Place(state, ids, 1), reviewed=draft, lenience=lenience)])
    drafter.end(state)
    return first


def test_a_guess_has_its_chance_among_the_ids_that_are_known():
    short, same = (with_short_head(with_head(8), opened, FIRST, MET) for _ in range(2))
    few = 12  # the target's vocabulary: fewer ids than are known here
    drafter = greedy_drafter(short, few)
    for ids in ([1, 2, 30], [1, 2, 30, 5, 40]):
        guess = reviewed(drafter, ids)
        same.truncate(0)
        logits = same.forward(np.array(ids))[0]
        assert guess.token == np.argmax(logits[:few])
        chances = np.exp(logits) / np.exp(logits).sum()
        assert guess.chance == pytest.approx(chances[guess.token])
        assert guess.trust == int(guess.chance * CLASSES)
    drafter.close()
    same.close()


@pytest.mark.parametrize("known", [True, False])
def test_a_lenient_review_keeps_no_guess_that_is_not_known(known):
    read = list(range(FIRST, FIRST + MET))  # as many as there are places
    mine = reviewed(greedy_drafter(), read).token
    other = next(i for i in ([5, 6] if known else [VOCABULARY - 1]) if i != mine)
    first = reviewed(greedy_drafter(), read, [Guess(other, "another", chance=1e-30)], 1e6)
    assert (first.token, first.source) == ((other, "another") if known else (mine, "small"))
