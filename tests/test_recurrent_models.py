"""Drafting over models whose states sum up: the plain answers, whatever is guessed and taken back."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.kernels_arm import ops
from flatlm.runtime.backends import Segment
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.drafting.maxgram import MaxGram
from flatlm.runtime.drafting.model import ModelDrafter
from flatlm.runtime.drafting.spec import DraftSpec, assemble
from flatlm.runtime.drafting.speculator import Speculator
from flatlm.runtime.generation.scheduler import Scheduler
from tests.recurrent_graphs import MIXERS, recurrent_graph
from tests.test_drafting import GREEDY, SAMPLED, Guesser, answer, asked
from tests.tiny_graphs import VOCABULARY

CONTEXT = 90
PROMPTS = ([7], [1, 2, 3, 1, 2], [5, 6] * 20, [5, 6] * 19 + [4])
RULES = {"greedy": GREEDY, "sampled": SAMPLED}


@pytest.fixture(scope="module", params=MIXERS)
def artifact(request):
    return SimpleNamespace(graph=recurrent_graph(request.param, 5, context=CONTEXT))


@pytest.fixture(scope="module")
def plain_answers(artifact):
    backend = NativeBackend(artifact, threads=1)
    scheduler = Scheduler(backend)
    answers = {
        (i, name): answer(scheduler, prompt, options)
        for i, prompt in enumerate(PROMPTS)
        for name, options in RULES.items()
    }
    backend.close()
    return answers


@settings(max_examples=15, deadline=None)
@given(script=st.lists(st.integers(0, 31), min_size=1, max_size=12), threads=st.sampled_from([1, 2]))
def test_any_guesses_give_the_plain_answers(artifact, plain_answers, script, threads):
    backend = NativeBackend(artifact, threads=threads)
    for (i, name), expected in plain_answers.items():
        speculator = Speculator(Guesser(PROMPTS[i] + expected, script, VOCABULARY))
        drafted = Scheduler(backend, speculator=speculator)
        assert answer(drafted, PROMPTS[i], RULES[name]) == expected
        assert drafted.slots.held() == [*PROMPTS[i], *expected[:-1]]
    backend.close()


def test_wrong_guesses_are_taken_back_and_nothing_is_read_again(artifact, plain_answers):
    expected, fed = plain_answers[0, "greedy"], []

    class Counted(NativeBackend):
        def forward_many(self, segments):
            fed.extend(len(segment.ids) for segment in segments)
            return super().forward_many(segments)

    backend = Counted(artifact, threads=1)
    wrong = [(one + 1) % VOCABULARY for one in PROMPTS[0] + expected]
    speculator = Speculator(Guesser(wrong, [ops.KEPT - 1], VOCABULARY))
    assert answer(Scheduler(backend, speculator=speculator), PROMPTS[0], GREEDY) == expected
    assert max(fed) == ops.KEPT  # a token and its guesses, all of them wrong
    assert len(fed) == len(expected)  # a step for each token
    backend.close()


def drafters(artifact):
    def model(backend, name):
        return ModelDrafter(name, backend, VOCABULARY, itertools.count().__next__)

    return {
        "maxgram": ([MaxGram()], DraftSpec(("maxgram",))),
        "itself": ([model(NumpyBackend(artifact), "m")], DraftSpec(("m",), ((6,),), 1.0)),
        "native": ([model(NativeBackend(artifact, threads=1), "m")], DraftSpec(("m",), ((6,),), 1.0)),
        "auto": ([MaxGram(), model(NumpyBackend(artifact), "m")], DraftSpec(("maxgram", "m"))),
    }


@pytest.mark.parametrize("shape", ["maxgram", "itself", "native", "auto"])
def test_every_drafter_gives_the_plain_answers(artifact, plain_answers, shape):
    backend = NativeBackend(artifact, threads=2)
    speculator = assemble(*drafters(artifact)[shape], clock=itertools.count().__next__)
    scheduler, drafted = Scheduler(backend, speculator=speculator), 0
    for (i, name), expected in plain_answers.items():
        one = asked(PROMPTS[i], RULES[name])
        assert list(scheduler.write(one)) == expected
        drafted += one.timings.drafting.drafted
    assert drafted > 0
    backend.close()


@pytest.mark.parametrize("cut", [1, 5, 38, 39])
def test_a_prompt_that_begins_like_the_last_one_has_the_same_answer(artifact, plain_answers, cut):
    """Whether its state could be cut back to there or is read again."""
    backend = NativeBackend(artifact, threads=1, slots=2)
    backend.forward_many([Segment(0, [*PROMPTS[3][:cut], 1, 2, 3])])
    scheduler = Scheduler(backend)
    for i in (3, 2, 3):
        assert answer(scheduler, PROMPTS[i], GREEDY) == plain_answers[i, "greedy"]
    backend.close()
