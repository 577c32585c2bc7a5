"""Sequences side by side: the tokens and bits of one at a time, whoever joins and leaves."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.runtime.backends import Segment
from flatlm.runtime.backends.native import NativeBackend, steps
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.errors import ContextError, ResourceError, UsageError
from flatlm.runtime.generation.answer import Answer, Prompt
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import SamplingOptions
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.tiny_graphs import CONTEXT, VOCABULARY, quantized_graph
from tests.tiny_text import FakeBackend, byte_level, write_folder

SLOTS = 5


def same_bits(a, b):
    return np.array_equal(a.view(np.int32), b.view(np.int32))


# ---- the backends


@pytest.fixture(scope="module", params=["float32", "int8"])
def artifact(request):
    return SimpleNamespace(graph=quantized_graph(0, request.param))


@pytest.fixture(scope="module")
def texts():
    return np.random.default_rng(1).integers(0, VOCABULARY, (SLOTS, CONTEXT))


@pytest.fixture(scope="module")
def expected(artifact, texts):
    """Logits of every position of every text, each read alone by the reference."""
    return [NumpyBackend(artifact).forward(ids, CONTEXT) for ids in texts]


def check_together(backend, texts, expected, seed):
    """Read the texts side by side in random parts, some in each step, and compare every row."""
    chance, read = random.Random(seed), [0] * len(texts)
    for slot in range(len(texts)):
        backend.truncate(0, slot)
    while min(read) < CONTEXT:
        unread = [slot for slot in range(len(texts)) if read[slot] < CONTEXT]
        segments = []
        for slot in chance.sample(unread, chance.randint(1, len(unread))):
            size = min(chance.choice([1, 1, 1, 2, 9, 17]), CONTEXT - read[slot])
            ids = texts[slot][read[slot] : read[slot] + size]
            segments.append(Segment(slot, ids, chance.randint(0, size)))
        logits = backend.forward_many(segments)
        for segment, rows in zip(segments, logits, strict=True):
            read[segment.slot] += len(segment.ids)
            end = read[segment.slot]
            assert len(rows) == segment.logits
            assert same_bits(rows, expected[segment.slot][end - segment.logits : end])
    assert list(backend.positions) == read


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_rows_beside_others_are_the_rows_alone(artifact, texts, expected, threads):
    backend = NativeBackend(artifact, threads=threads, slots=SLOTS)
    for seed in range(8):
        check_together(backend, texts, expected, seed)
    backend.close()


def test_the_reference_takes_several_sequences_too(artifact, texts, expected):
    check_together(NumpyBackend(artifact, slots=SLOTS), texts, expected, 0)


@pytest.mark.parametrize("make", [NativeBackend, NumpyBackend])
@pytest.mark.parametrize("length", [1, 3, 4, 16, 19])
def test_a_copied_start_goes_on_as_if_it_had_been_read(artifact, texts, expected, make, length):
    backend = make(artifact, threads=2, slots=3)
    backend.forward_many([Segment(0, texts[0][:20]), Segment(2, texts[2])])
    backend.copy(0, 2, length)
    assert list(backend.positions) == [20, 0, length]
    other = np.concatenate([texts[0][:length], texts[1][length:]])
    alone = NumpyBackend(artifact).forward(other, CONTEXT)
    rows = backend.forward_many([Segment(2, other[length:], CONTEXT), Segment(0, texts[0][20:], 4)])
    assert same_bits(rows[0], alone[length:])
    assert same_bits(rows[1], expected[0][20:])  # the source is as it was
    backend.close()


def test_onnxruntime_takes_several_sequences(tmp_path):
    pytest.importorskip("onnxruntime")
    from flatlm.export.onnx_writer import write_onnx
    from flatlm.runtime.backends.ort import OrtBackend

    artifact = SimpleNamespace(graph=quantized_graph(0), path=tmp_path)
    write_onnx(artifact.graph, tmp_path)
    backend = OrtBackend(artifact, threads=1, slots=2)
    ids = np.random.default_rng(1).integers(0, VOCABULARY, 12)
    alone = NumpyBackend(artifact).forward(ids, 12)
    backend.forward_many([Segment(0, ids[:5]), Segment(1, ids[::-1])])
    backend.copy(0, 1, 4)
    first, second = backend.forward_many([Segment(0, ids[5:], 7), Segment(1, ids[4:], 8)])
    assert same_bits(first, alone[5:])
    assert same_bits(second, alone[4:])
    assert list(backend.positions) == [12, 12]


def test_what_does_not_fit_one_sequence_is_appended_to_none(artifact, texts):
    backend = NativeBackend(artifact, slots=2, context=16)
    backend.forward_many([Segment(0, texts[0][:10]), Segment(1, texts[1][:3])])
    with pytest.raises(ContextError, match=r"10 \+ 7 tokens.*16"):
        backend.forward_many([Segment(1, texts[1][:2]), Segment(0, texts[0][:7])])
    assert backend.positions == [10, 3]
    backend.close()


def test_memory_is_asked_for_all_sequences(artifact, monkeypatch):
    from flatlm.runtime.memory import cache_bytes

    one = cache_bytes(artifact.graph, CONTEXT)
    weights = sum(tensor.data.nbytes for tensor in artifact.graph.constants.values())
    monkeypatch.setattr("flatlm.runtime.memory.available_bytes", lambda: weights + 4 * one)
    NativeBackend(artifact, slots=4).close()
    with pytest.raises(ResourceError, match=r"for 5 sequences.*use a smaller --batch"):
        NativeBackend(artifact, slots=5)


def test_a_step_without_logits_marks_every_operation(artifact, texts):
    """Else a thread that comes late would find work of that step while the next one runs."""
    backend = NativeBackend(artifact, threads=2, slots=2)
    backend.forward_many([Segment(0, texts[0][:3]), Segment(1, texts[1][:3])])
    backend.forward_many([Segment(0, texts[0][3:5], 0), Segment(1, texts[1][3:12], 0)])
    words = backend.team._words.view(np.int64)[::8]
    assert (words >> 30).tolist() == [2] * len(backend.plan.ops)
    backend.close()


def test_segments_fill_steps_and_long_ones_go_over_several():
    segments = [Segment(0, np.arange(3), 1), Segment(1, np.arange(9), 7), Segment(2, np.arange(4), 1)]
    found = [[(number, len(part.ids), part.logits) for number, part in step] for step in steps(segments, 5)]
    assert found == [[(0, 3, 1), (1, 2, 0)], [(1, 5, 5)], [(1, 2, 2), (2, 3, 0)], [(2, 1, 1)]]


# ---- the sequences of a batch


def jobs(seed, count, context):
    """Prompts of which some begin alike, with samplers of several kinds."""
    chance, result = random.Random(seed), []
    starts = [[chance.randrange(3, 50) for _ in range(chance.randint(1, 12))] for _ in range(3)]
    for number in range(count):
        prompt = chance.choice(starts) + [chance.randrange(3, 50) for _ in range(chance.randint(0, 5))]
        options = SamplingOptions(temp=chance.choice([0.0, 1.0]), seed=number, repeat_penalty=1.1)
        n = chance.choice([-1, 1, 2, 7, context])
        stops = frozenset(chance.sample(range(50), chance.choice([0, 2])))
        result.append((prompt[: context - 1], options, n, stops))
    return result


def writer(prompt, options=None, n=-1, stops=()):
    return Answer(Prompt(prompt, replace(options or SamplingOptions(), n=n)), stops)


def alone(backend, job):
    return list(Scheduler(backend).write(writer(*job)))


def together(batch, given, chance, most=100):
    """The answers to jobs that join at random times."""
    writers, waiting, written = [], list(given), {}
    while waiting or batch.count:
        while waiting and batch.count < most and chance.random() < 0.5:
            writers.append(batch.add(writer(*waiting.pop(0))))
        for one, ids in batch.step():
            written.setdefault(one, []).extend(ids)
    assert all(one.ended for one in writers)
    return [written[one] for one in writers], writers


@pytest.mark.parametrize("seed", range(12))
def test_answers_are_those_of_one_at_a_time(seed):
    given, backend = jobs(seed, 20, 64), FakeBackend(slots=1 + seed % 5)
    answers, writers = together(Scheduler(backend, chunk=4), given, random.Random(seed))
    assert answers == [alone(FakeBackend(), job) for job in given]
    assert sum(one.reused for one in writers) > 0
    read = sum(len(ids) for ids in backend.calls)
    total = sum(len(one.prompt.ids) - one.reused + one.written - 1 for one in writers)
    assert read == total  # what is reused is not read again, and no id is fed that nobody needs


@pytest.mark.parametrize("kv", ["float32", "int8"])
def test_answers_of_the_native_backend_are_those_of_one_at_a_time(kv):
    artifact = SimpleNamespace(graph=quantized_graph(3, kv))
    given = jobs(1, 24, CONTEXT)
    backend, single = NativeBackend(artifact, threads=2, slots=6), NativeBackend(artifact, threads=1)
    answers, _ = together(Scheduler(backend, chunk=5), given, random.Random(2))
    assert answers == [alone(single, job) for job in given]
    backend.close()
    single.close()


def test_a_prompt_is_read_in_chunks_beside_others_that_write():
    backend = FakeBackend(slots=2)
    batch = Scheduler(backend, chunk=3)
    batch.add(writer([1, 2], n=9))
    batch.step()
    batch.add(writer([5, 6, 7, 8], n=2))
    while batch.count:
        batch.step()
    assert backend.steps[:4] == [[(0, 2)], [(0, 1), (1, 3)], [(0, 1), (1, 1)], [(0, 1), (1, 1)]]
    assert backend.steps[4:] == [[(0, 1)]] * 5


def answered(batch, prompt, n=2):
    one = batch.add(writer(prompt, n=n))
    while not one.ended:
        batch.step()
    return one


def test_samples_of_one_prompt_read_it_once():
    backend = FakeBackend(slots=4)
    batch, prompt = Scheduler(backend, chunk=8), [*range(3, 13)]
    writers = [writer(prompt, SamplingOptions(temp=1.0, seed=i), 5) for i in range(4)]
    for one in writers:
        batch.add(one)
    while batch.count:
        batch.step()
    assert [one.reused for one in writers] == [0, 9, 9, 9]
    assert len({tuple(one.ids) for one in writers}) > 1


def test_conversations_that_take_turns_keep_their_caches():
    batch = Scheduler(FakeBackend(slots=2))
    system = [3, 4, 5, 6]
    one, two = answered(batch, [*system, 10]), answered(batch, [*system, 20])
    assert two.reused == 4  # copied
    for turn in (30, 31):
        for was in (one, two):
            again = answered(batch, [*was.ids[:7], turn])
            assert again.reused >= 6  # all but the last id that was written, and the new one
            assert again.ids == [
                *again.prompt.ids,
                *alone(FakeBackend(), (again.prompt.ids, SamplingOptions(), 2, ())),
            ]


def test_the_slot_that_ended_first_is_given_away_first():
    batch = Scheduler(FakeBackend(slots=2))
    answered(batch, [3, 4, 5])
    answered(batch, [6, 7, 8])
    answered(batch, [9, 10, 11])
    assert answered(batch, [6, 7, 8]).reused == 2
    assert answered(batch, [3, 4, 5]).reused == 0


def test_who_is_removed_gives_its_slot_to_the_next():
    backend = FakeBackend(slots=1)
    batch = Scheduler(backend)
    first, second = writer([3, 4]), writer([3, 9], n=3)
    batch.add(first)
    batch.add(second)
    batch.step()
    assert (first.sequence.slot, second.sequence.slot, batch.count) == (0, -1, 2)
    batch.remove(first)
    while batch.count:
        batch.step()
    assert second.ids[2:] == alone(FakeBackend(), ([3, 9], SamplingOptions(), 3, ()))


def test_an_interrupt_ends_all_and_leaves_the_next_answers_right():
    class Interrupted(FakeBackend):
        def forward_many(self, segments):
            rows = super().forward_many(segments)
            if len(self.steps) == 4:
                raise KeyboardInterrupt
            return rows

    batch = Scheduler(Interrupted(slots=2), chunk=2)
    for prompt in ([3, 4, 5], [3, 4, 6]):
        batch.add(writer(prompt))
    for _ in range(3):
        batch.step()
    with pytest.raises(KeyboardInterrupt):
        batch.step()
    assert batch.count == 0
    assert answered(batch, [3, 4, 5, 7], 5).ids[4:] == alone(
        FakeBackend(), ([3, 4, 5, 7], SamplingOptions(), 5, ())
    )


def test_seconds_of_all_writers_add_up_to_what_passed(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    batch = Scheduler(FakeBackend(slots=3), chunk=4)
    writers = [writer([3 + i] * 6, n=5) for i in range(3)]
    for one in writers:
        batch.add(one)
    count = 0
    while batch.count:
        batch.step()
        count += 1
    assert sum(w.read_seconds + w.write_seconds for w in writers) == pytest.approx(count)
    assert writers[0].read_seconds == 2  # alone
    assert writers[2].read_seconds == pytest.approx(4 / 6 + 2 / 4)  # beside two others


def test_a_prompt_that_cannot_be_read_is_refused_when_it_comes():
    batch = Scheduler(FakeBackend(context=8, slots=2))
    with pytest.raises(ContextError, match="9 tokens long, the context holds 8"):
        batch.add(writer([3] * 9))
    with pytest.raises(UsageError, match="empty"):
        batch.add(writer([]))
    assert batch.count == 0


# ---- many prompts, one LLM


@pytest.fixture
def llm(tmp_path):
    write_folder(tmp_path, byte_level())
    return LLM.of(FakeBackend(slots=2), load_tokenizer(tmp_path))


def asked(ids, n=3):
    return Prompt(ids, SamplingOptions(n=n))


def test_another_answer_in_the_middle_of_many_is_an_error_and_not_an_early_end(llm):
    answers = llm.answer_many([asked([3, 4 + i]) for i in range(6)])
    next(answers)
    llm.stream_prompt(asked([9, 9])).run()
    with pytest.raises(UsageError, match="another answer was begun"):
        next(answers)


def test_many_answers_may_be_left_early(llm):
    for _ in llm.answer_many([asked([3, 4 + i]) for i in range(6)]):
        break
    again = dict(llm.answer_many([asked([3, 4 + i]) for i in range(6)]))
    assert sorted(again) == list(range(6))


def test_a_prompt_that_is_too_long_lets_the_answers_before_it_end(llm):
    prompts = [asked([3, 4], 9), asked([3] * (llm.backend.context + 1)), asked([5, 6])]
    answers = llm.answer_many(prompts)
    assert next(answers)[0] == 0
    with pytest.raises(ContextError):
        next(answers)


def test_who_wants_no_token_has_generated_none(llm):
    ((_, answer),) = llm.answer_many([asked([3, 4, 5], 0)])
    assert answer.timings.generated_tokens == 0
