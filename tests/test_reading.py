"""Several prompts at once: whose chunk is next, who waits for whom, how long a chunk is."""

from __future__ import annotations

import pytest

from flatlm.runtime.generation.answer import Answer, Prompt
from flatlm.runtime.generation.reading import LEAST_CHUNK, PATIENCE, ChunkSize, next_reader
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.options import SamplingOptions
from tests.tiny_text import FakeBackend


def asked(prompt, n=2):
    return Answer(Prompt(prompt, SamplingOptions(n=n)))


def alone(prompt, n=2):
    batch = Scheduler(FakeBackend(context=400))
    one = batch.add(asked(prompt, n))
    while batch.count:
        batch.step()
    return one.ids


def long_prompt(first, size=200):
    return [first, *(3 + i % 90 for i in range(size - 1))]


def test_a_short_prompt_does_not_wait_for_the_long_one_before_it():
    batch = Scheduler(FakeBackend(context=400, slots=3), chunk=8)
    long, short = batch.add(asked(long_prompt(9))), None
    batch.step()
    short = batch.add(asked([4, 5, 6]))
    batch.step()
    assert (short.written, long.reading) == (1, True)
    while batch.count:
        batch.step()
    assert long.ids == alone(long_prompt(9))
    assert short.ids == alone([4, 5, 6])


def test_a_long_prompt_goes_on_however_many_short_ones_come():
    batch = Scheduler(FakeBackend(context=400, slots=3), chunk=8)
    long = batch.add(asked(long_prompt(9, 24), n=1))
    steps = 0
    while not long.ended:
        while batch.count < 3:
            batch.add(asked([4 + steps % 80, 5, 6], n=1))
        batch.step()
        steps += 1
    assert steps <= 3 * (PATIENCE + 1)


def test_equal_prompts_are_read_one_after_the_other():
    first, second, third = readers = [asked([3] * 8) for _ in range(3)]
    order = []
    while readers:
        order.append(next_reader(readers))
        order[-1].sequence.read += 4
        readers = [one for one in readers if one.reading]
    assert order == [first, first, second, second, third, third]


def test_who_shares_a_beginning_with_a_prompt_that_is_read_waits_until_it_can_be_copied():
    backend = FakeBackend(context=400, slots=3)
    batch = Scheduler(backend, chunk=8)
    first = batch.add(asked([*long_prompt(9, 40), 100]))
    second = batch.add(asked([*long_prompt(9, 40), 101]))
    other = batch.add(asked([50, 51]))
    batch.step()
    assert (first.sequence.slot, second.sequence.slot, other.sequence.slot) == (0, -1, 1)
    while batch.count:
        batch.step()
    assert second.reused == 40
    assert second.ids == alone([*long_prompt(9, 40), 101])


def test_an_abandoned_prompt_leaves_its_slot_within_a_chunk():
    backend = FakeBackend(context=400, slots=1)
    batch = Scheduler(backend, chunk=8)
    long, short = batch.add(asked(long_prompt(9))), batch.add(asked([4, 5]))
    batch.step()
    batch.cancel(long)
    batch.step()
    assert (long.reason, short.written) == ("cancelled", 1)
    assert sum(map(len, backend.calls)) == 8 + 2


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.1, 128), (0.5, 128), (1.0, 64), (1.1, 48), (60.0, LEAST_CHUNK)]
)
def test_a_chunk_is_shorter_where_it_takes_long(seconds, expected):
    chunk = ChunkSize(128)
    chunk.within(0.5)
    assert chunk.tokens == 2 * LEAST_CHUNK
    chunk.measured(128, seconds)
    assert chunk.tokens == expected
    chunk.measured(chunk.tokens, chunk.tokens * 1e-4)
    assert chunk.tokens == 128


def test_a_chunk_keeps_its_length_where_no_time_is_given():
    chunk = ChunkSize(128)
    chunk.measured(128, 100.0)
    assert chunk.tokens == 128
