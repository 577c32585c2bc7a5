"""Drafting is invisible: the same tokens as plain decoding, whoever drafts, greedy or sampled."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.runtime import cli
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.drafting import Draft, Guess
from flatlm.runtime.drafting.cascade import PUBLISHED, Cascade
from flatlm.runtime.drafting.maxgram import MaxGram
from flatlm.runtime.drafting.model import ModelDrafter
from flatlm.runtime.drafting.spec import DraftSpec, assemble
from flatlm.runtime.drafting.speculator import Speculator
from flatlm.runtime.generation.answer import Answer, Prompt
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import SamplingOptions
from tests.test_cli import MANIFEST, Machine
from tests.tiny_graphs import CONTEXT, VOCABULARY, quantized_graph
from tests.tiny_text import CHATML, FakeBackend, ScriptedBackend, byte_level, write_folder

GREEDY = SamplingOptions()
SAMPLED = SamplingOptions(temp=3.0, top_k=20, top_p=0.95, min_p=0.01, seed=11)
PENALIZED = SamplingOptions(repeat_penalty=1.7, repeat_last_n=8)


class Guesser:
    """Guesses from a list of numbers: right, wrong or random ones, any count."""

    name = "guesser"

    def __init__(self, right, script, vocab):
        self.right, self.script, self.vocab = right, itertools.cycle(script), vocab

    def begin(self, rule): ...

    def learn(self, *found): ...

    def end(self, state): ...

    def close(self): ...

    def propose(self, asks):
        return [Draft(self.guess(ids, n)) for _, ids, n in asks]

    def guess(self, ids, n):
        known = self.right[len(ids) :]
        count = min(n, next(self.script))
        truth = [*known, *([0] * n)][:count]
        wrong = [next(self.script) % 4 == 0 for _ in truth]
        return [Guess((t + 1) % self.vocab if w else t, self.name) for t, w in zip(truth, wrong, strict=True)]


def asked(prompt, options=GREEDY, n=-1, stop_ids=()):
    return Answer(Prompt(prompt, replace(options, n=n)), stop_ids)


def answer(scheduler, *what, **options):
    """The ids that follow a prompt."""
    return list(scheduler.write(asked(*what, **options)))


def alone(*what, **options):
    """The ids that follow a prompt by a fresh FakeBackend."""
    return answer(Scheduler(FakeBackend()), *what, **options)


class Periodic(FakeBackend):
    """Repeats itself often, so that drafters are right now and then."""

    def row(self):
        return super().row() + 9.0 * (np.arange(self.vocab) == len(self.ids) * 7 // 5 % 4)


# ---- token for token


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=12),
    st.integers(1, 30),
    st.sampled_from([GREEDY, SAMPLED, PENALIZED]),
    st.sampled_from([(), (3, 5), tuple(range(20))]),
)
def test_any_guesses_give_the_plain_answer_and_the_same_state(script, n, options, stop_ids):
    prompt, plain, backend = [1, 2, 3], Periodic(vocab=30), Periodic(vocab=30)
    writer = Scheduler(plain)
    expected = answer(writer, prompt, options, n, stop_ids)
    drafted = Scheduler(backend, speculator=Speculator(Guesser(prompt + expected, script, 30)))
    assert answer(drafted, prompt, options, n, stop_ids) == expected
    assert backend.ids == plain.ids == writer.slots.held() == drafted.slots.held()


def cascades():
    """Every shape of drafter over tiny models: name → parts of a fresh speculator. Any pass takes 1 s."""

    def model(seed):
        return ModelDrafter(f"model {seed}", NumpyBackend(tiny(seed)), VOCABULARY, itertools.count().__next__)

    return {
        "maxgram": ([MaxGram()], DraftSpec(("maxgram",))),
        "latest": ([MaxGram(latest=True)], DraftSpec(("maxgram",))),
        "bigrams": ([MaxGram(np.arange(VOCABULARY)[::-1])], DraftSpec(("maxgram",))),
        "itself": ([model(TARGET)], DraftSpec(("m",), ((6,),), 1.0)),
        "other": ([model(5)], DraftSpec(("m",), ((3,),), 1.0)),
        "auto": ([MaxGram(), model(TARGET), model(5)], DraftSpec(("maxgram", "m", "m"))),
        "static": ([model(5), MaxGram()], DraftSpec(("m", "maxgram"), ((4, 3), (5,)), 3.0)),
        "strict": ([model(TARGET), MaxGram()], DraftSpec(("m", "maxgram"), ((13, 10), (10,)), 1.0)),
        "three": ([model(TARGET), model(5), MaxGram()], DraftSpec(("m",) * 3, *PUBLISHED["flan-t5"])),
    }


TARGET = 9  # a seed whose greedy answers do not end in one token for ever
PROMPTS = ([7], [1, 2, 3, 1, 2], [5, 5, 5, 5])
RULES = {"greedy": GREEDY, "sampled": SAMPLED, "penalized": PENALIZED}


def tiny(seed):
    return SimpleNamespace(graph=quantized_graph(seed))


@pytest.fixture(scope="module")
def plain_answers():
    scheduler = Scheduler(NumpyBackend(tiny(TARGET)))
    return {
        (i, name): answer(scheduler, prompt, options)
        for i, prompt in enumerate(PROMPTS)
        for name, options in RULES.items()
    }


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", sorted(cascades()))
def test_every_drafter_gives_the_plain_answers_of_a_real_graph(plain_answers, shape, threads):
    backend = NativeBackend(tiny(TARGET), threads=threads)
    speculator = assemble(*cascades()[shape], clock=itertools.count().__next__)
    scheduler, drafted = Scheduler(backend, speculator=speculator), 0
    for (i, name), expected in plain_answers.items():
        one = asked(PROMPTS[i], RULES[name])
        assert list(scheduler.write(one)) == expected
        assert scheduler.slots.held() == [*PROMPTS[i], *expected[:-1]]
        drafted += one.timings.drafting.drafted
    assert drafted > 0
    assert len(expected) == CONTEXT - len(PROMPTS[-1]) + 1
    backend.close()


def test_a_model_that_drafts_for_itself_is_always_right_even_when_sampling():
    for options in (GREEDY, SAMPLED):
        itself = ModelDrafter("m", NumpyBackend(tiny(TARGET)), VOCABULARY)
        speculator = assemble([itself], DraftSpec(("m",), ((4,),), 1.0))
        one = asked([7, 8], options, n=16)
        list(Scheduler(NumpyBackend(tiny(TARGET)), speculator=speculator).write(one))
        timings = one.timings.drafting
        assert (timings.accepted, timings.drafted, timings.target_passes) == (12, 12, 3)
        assert timings.tokens_per_pass == 5


def test_several_tokens_are_one_pass_and_the_rest_is_forgotten():
    backend, expected = FakeBackend(), alone([1, 2], n=6)
    guesses = Guesser([1, 2, *expected[:4], 0, 0], [3, 1, 1, 1], 300)
    assert answer(Scheduler(backend, speculator=Speculator(guesses)), [1, 2], n=6) == expected
    assert backend.calls[1] == expected[:4]
    assert backend.ids == [1, 2, *expected[:5]]


def test_an_interrupt_in_a_verification_leaves_the_next_answer_right():
    class Interrupted(FakeBackend):
        def truncate(self, length, slot=0):
            if len(self.calls) == 3:
                self.calls.append([])
                raise KeyboardInterrupt
            return super().truncate(length, slot)

    scheduler = Scheduler(Interrupted(), speculator=Speculator(Guesser([], [2, 0, 0], 300)))
    with pytest.raises(KeyboardInterrupt):
        answer(scheduler, [1, 2])
    assert answer(scheduler, [1, 2, 3], n=8) == alone([1, 2, 3], n=8)


def test_a_consumer_that_leaves_within_a_draft_leaves_the_next_answer_right():
    expected = alone([1, 2], n=9)
    speculator = Speculator(Guesser([1, 2, *expected], [5, 1, 1, 1, 1, 1], 300))
    scheduler, one = Scheduler(FakeBackend(), speculator=speculator), asked([1, 2])
    assert list(itertools.islice(scheduler.write(one), 3)) == expected[:3]
    scheduler.remove(one)
    assert answer(scheduler, [1, 2, 9], n=5) == alone([1, 2, 9], n=5)


# ---- states that cannot be cut back just anywhere


class Coarse(FakeBackend):
    """Keeps every `every`-th position only, as snapshots of a state would; 0: nothing at all."""

    def __init__(self, every, slots=1):
        super().__init__(slots=slots)
        self.every = every

    def truncate(self, length, slot=0):
        if length < len(self.sequences[slot]):
            length = length - length % self.every if self.every else 0
        return super().truncate(length, slot)


@pytest.mark.parametrize("every", [0, 3, 8])
@pytest.mark.parametrize("script", [[3, 1, 1], [4, 0, 2], [9, 1, 2, 0, 3]])
def test_what_a_state_could_not_keep_is_read_again_and_changes_no_token(every, script):
    prompt = [*range(1, 12)]
    expected = alone(prompt, n=20)
    guesses = Guesser([*prompt, *expected, 0, 0], script, 300)
    scheduler = Scheduler(Coarse(every), speculator=Speculator(guesses), chunk=4)
    assert answer(scheduler, prompt, n=20) == expected
    assert answer(scheduler, [*prompt[:7], 5], n=6) == alone([*prompt[:7], 5], n=6)
    assert scheduler.slots.held() == [*prompt[:7], 5, *alone([*prompt[:7], 5], n=5)]


@pytest.mark.parametrize("every", [0, 5])
def test_sequences_side_by_side_read_again_what_their_states_lost(every):
    prompts = [[1, 2, 3, 4, 5, 6, 7 + i] for i in range(4)]
    expected = [alone(prompt, n=12) for prompt in prompts]
    guesses = Guesser([*prompts[0], *expected[0], 0, 0], [2, 1, 3, 0], 300)
    scheduler = Scheduler(Coarse(every, slots=2), speculator=Speculator(guesses), chunk=3)
    answers = [scheduler.add(asked(prompt, n=12)) for prompt in prompts]
    while scheduler.count:
        scheduler.step()
    assert [one.sequence.ids[7:] for one in answers] == expected


# ---- the LLM


class Scripted(ScriptedBackend):
    """Takes several ids at once for an answer that goes on; only the first call is the prompt."""

    def forward(self, ids, logits=1):
        if self.ids and len(ids) > 1:
            self.calls.append(list(ids))
            return np.concatenate(
                [super(ScriptedBackend, self).forward(ids[i : i + 1]) for i in range(len(ids))]
            )
        return super().forward(ids, logits)


@pytest.fixture
def tokenizer(tmp_path):
    from flatlm.runtime.text.tokenizer import load_tokenizer

    return load_tokenizer(write_folder(tmp_path, byte_level()))


def maxgram():
    return assemble([MaxGram()], DraftSpec(("maxgram",), ((10,),), 1.0))


def test_a_drafted_text_is_the_plain_text_and_counts_its_drafts(tokenizer):
    script = [*tokenizer.encode("abcabcabcabc. abcabcabcabc", special=False), 0]
    plain = LLM.of(Scripted(script), tokenizer).generate("x")
    drafted = LLM.of(Scripted(script), tokenizer, speculator=maxgram()).generate("x")
    assert (drafted.text, drafted.tokens, drafted.finish_reason) == (plain.text, plain.tokens, "stop")
    t = drafted.timings.drafting
    assert (t.sources[0].name, t.sources[0].accepted) == ("maxgram", t.accepted)
    assert 0 < t.accepted <= t.drafted
    assert t.written == drafted.timings.generated_tokens - 1 > t.target_passes
    assert plain.timings.drafting is None


def test_a_stream_knows_who_proposed_what_it_gives(tokenizer):
    script = [*tokenizer.encode("abcabcabc", special=False), 0]
    stream = LLM.of(Scripted(script), tokenizer, speculator=maxgram()).stream("x")
    given = [(piece, stream.source) for piece in stream]
    assert given[:5] == [("a", ""), ("b", ""), ("c", ""), ("a", ""), ("b", "maxgram")]


def test_an_llm_closes_its_drafters(tokenizer):
    drafter = FakeBackend()
    speculator = assemble([ModelDrafter("m", drafter, 300), MaxGram()], DraftSpec(("m", "maxgram")))
    with LLM.of(FakeBackend(), tokenizer, speculator=speculator):
        pass
    assert drafter.closed


def test_a_static_cascade_closes_all_its_models():
    backends = FakeBackend(), FakeBackend()
    drafters = [ModelDrafter(str(i), backend, 300) for i, backend in enumerate(backends)]
    Cascade(drafters, ((2, 2), (2,)), 1.0).close()
    assert all(backend.closed for backend in backends)


# ---- the command line


@pytest.fixture
def flatlm(tmp_path, monkeypatch, capsys):
    """Runs a command line on a model that answers "abcabcabcabc"; SMALL is a model beside it."""
    target, small = (
        write_folder(tmp_path / name, byte_level(), {"chat_template": CHATML}) for name in ("model", "small")
    )
    machine = Machine(target, monkeypatch)
    script = [*byte_level().encode("abcabcabcabc").ids, 0]
    machine.backends["native"] = lambda: Scripted(script, context=128)
    graph = quantized_graph()
    monkeypatch.setattr(
        "flatlm.runtime.format.artifact.open_artifact",
        lambda path: SimpleNamespace(path=Path(path), manifest=MANIFEST, graph=graph),
    )

    def run(verb, *arguments):
        arguments = [str(small) if argument == "SMALL" else argument for argument in arguments]
        return cli.main([verb, str(target), *arguments]), *capsys.readouterr()

    return run


def test_drafts_reach_the_answer_and_its_json(flatlm):
    status, out, err = flatlm("generate", "-p", "hi", "--draft", "cascade:maxgram", "--json")
    drafting = json.loads(out)["timings"]["drafting"]
    assert (status, json.loads(out)["text"]) == (0, "abcabcabcabc")
    assert drafting["accepted"] > 4
    assert [source["name"] for source in drafting["sources"]] == ["maxgram"]
    assert "tokens a pass" in err


def test_a_small_model_drafts_beside_the_target(flatlm):
    status, out, _ = flatlm("generate", "-p", "hi", "--draft", "SMALL", "--json")
    assert (status, json.loads(out)["text"]) == (0, "abcabcabcabc")
    assert [source["name"] for source in json.loads(out)["timings"]["drafting"]["sources"]] == ["small"]


def test_who_drafted_is_coloured_on_a_terminal_only(flatlm, monkeypatch):
    arguments = ["generate", "-p", "hi", "--draft", "cascade:maxgram", "--show-draft"]
    assert flatlm(*arguments)[1] == "abcabcabcabc\n"
    monkeypatch.setattr("flatlm.runtime.commands.generate._on_terminal", lambda: True)
    status, out, err = flatlm(*arguments)
    assert (status, out.replace("\x1b[32m", "").replace("\x1b[0m", "")) == (0, "abcabcabcabc\n")
    assert out.count("\x1b[32m") == out.count("\x1b[0m") > 4
    assert "drafted by \x1b[32mmaxgram\x1b[0m" in err


def test_bench_writes_text_with_and_without_drafts(flatlm):
    status, out, _ = flatlm("bench", "-p", "0", "-n", "6", "-r", "2", "--draft", "maxgram")
    tests = [line.split("|")[6].strip() for line in out.splitlines()[2:]]
    assert (status, tests) == (0, ["tg6", "text6", "drafted6"])
