"""What was computed stays when its slot is given away, in memory and on disk."""

from __future__ import annotations

import json
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.runtime.backends import Segment
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.errors import UsageError
from flatlm.runtime.generation.answer import Answer, Prompt
from flatlm.runtime.generation.prefix_files import SUFFIX, PrefixFiles
from flatlm.runtime.generation.prefixes import LEAST, Prefixes, Saving
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.options import SamplingOptions
from tests.tiny_graphs import quantized_graph
from tests.tiny_text import FakeBackend

CONTEXT = 400


class SavingBackend(FakeBackend):
    """Its states are the ids themselves, which tells what was put where."""

    def save(self, slot, length):
        return [np.array(self.sequences[slot][:length])]

    def load(self, slot, length, arrays):
        if len(arrays) != 1 or len(arrays[0]) != length:
            raise ValueError("it is of another model")
        self.sequences[slot] = arrays[0].tolist()


def text_of(seed, size=LEAST + 40):
    return [3 + random.Random(seed * 1000 + i).randrange(200) for i in range(size)]


def asked(prompt, n=2):
    return Answer(Prompt(prompt, SamplingOptions(n=n)))


def answered(batch, prompt, n=2):
    one = batch.add(asked(prompt, n))
    while not one.ended:
        batch.step()
    return one


def made(most_bytes=1 << 20, slots=1, files=None):
    backend = SavingBackend(context=CONTEXT, slots=slots)
    batch = Scheduler(backend)
    batch.slots.prefixes = Prefixes(backend, most_bytes, files)
    return batch, backend


def alone(prompt, n=2):
    return answered(Scheduler(FakeBackend(context=CONTEXT)), prompt, n).ids


def test_a_conversation_whose_slot_another_had_goes_on_where_it_was():
    batch, _ = made()
    first = answered(batch, text_of(1))
    answered(batch, text_of(2))
    more = [*first.ids, 7]
    again = answered(batch, more)
    assert again.reused == len(first.ids) - 1  # the last one was never read
    assert again.ids == alone(more)
    assert answered(batch, text_of(2)).reused == len(text_of(2)) - 1


def test_a_prompt_that_shares_a_beginning_gets_that():
    batch, _ = made()
    answered(batch, text_of(1))
    answered(batch, text_of(2))
    other = [*text_of(1)[:80], *text_of(3)]
    found = answered(batch, other)
    assert (found.reused, found.ids) == (80, alone(other))


def test_what_was_used_longest_ago_leaves_first():
    batch, _ = made(most_bytes=2 * 8 * (LEAST + 42))
    for seed in range(4):
        answered(batch, text_of(seed))  # 3 is in the slot, 2 and 1 are kept
    assert batch.slots.prefixes.bytes <= 2 * 8 * (LEAST + 42)
    assert answered(batch, text_of(0)).reused == 0
    assert answered(batch, text_of(3)).reused > 0


def test_what_is_short_is_not_kept_and_what_is_kept_longer_not_twice():
    batch, backend = made()
    short = text_of(1, LEAST - 10)
    answered(batch, short)
    answered(batch, text_of(2))
    assert answered(batch, short).reused == 0
    prefixes = Prefixes(backend, 1 << 20)
    backend.sequences[0] = text_of(5, 200)
    for length in (100, 200, 150):
        prefixes.keep(0, text_of(5, 200)[:length])
    assert prefixes.bytes == 8 * 200


@pytest.mark.parametrize("seed", range(2))
def test_answers_are_those_without_keeping_whatever_comes_when(seed):
    chance = random.Random(seed)
    batch, _ = made(most_bytes=chance.choice([0, 3000, 1 << 20]), slots=2)
    for _ in range(25):
        prompts = [
            [*text_of(chance.randrange(3), chance.randrange(1, 150)), *text_of(9, chance.randrange(1, 60))]
            for _ in range(chance.randrange(1, 4))
        ]
        answers = [batch.add(asked(prompt, 3)) for prompt in prompts]
        while batch.count:
            batch.step()
        assert [one.ids for one in answers] == [alone(prompt, 3) for prompt in prompts]


# ---- files


def files_in(folder, key="a model", most=1 << 20):
    return PrefixFiles(folder, key, most)


def test_another_process_begins_with_what_one_kept(tmp_path):
    files = files_in(tmp_path / "kept")
    batch, _ = made(files=files)
    first = answered(batch, text_of(1))
    batch.slots.keep_all()
    files.close()
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "kept").iterdir())
    batch, backend = made(files=files_in(tmp_path / "kept"))
    again = answered(batch, [*text_of(1), 9])
    assert again.reused == len(text_of(1))
    assert sum(map(len, backend.calls)) == 2
    assert first.ids[: len(text_of(1))] == text_of(1)
    other, _ = made(files=files_in(tmp_path / "kept", "another model"))
    assert answered(other, [*text_of(1), 9]).reused == 0


@pytest.mark.parametrize("damage", ["cut", "changed", "no head", "gone", "other ids", "a folder"])
def test_a_file_that_is_not_as_it_was_written_is_read_again_from_the_prompt(tmp_path, damage):
    files = files_in(tmp_path)
    batch, _ = made(files=files)
    answered(batch, text_of(1))
    batch.slots.keep_all()
    files.close()
    (path,) = tmp_path.glob("*" + SUFFIX)
    batch, _ = made(files=files_in(tmp_path))
    data = path.read_bytes()
    head, _, body = data.partition(b"\n")
    if damage == "gone":
        path.unlink()
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        changed = json.dumps({**json.loads(head), "ids": text_of(2)}).encode() + b"\n" + body
        path.write_bytes(
            {
                "cut": data[:-8],
                "changed": data[:-1] + bytes([data[-1] ^ 1]),
                "no head": b"x" + data,
                "other ids": changed,
            }[damage]
        )
    found = answered(batch, [*text_of(1), 9])
    assert (found.reused, found.ids) == (0, alone([*text_of(1), 9]))


def test_the_oldest_files_leave_where_there_are_too_many(tmp_path):
    files = files_in(tmp_path, most=4000)
    batch, _ = made(files=files)
    for seed in range(5):
        answered(batch, text_of(seed))
    files.close()
    kept = list(tmp_path.iterdir())
    assert 0 < sum(path.stat().st_size for path in kept) <= 4000
    batch, _ = made(files=files_in(tmp_path))
    assert answered(batch, text_of(0)).reused == 0
    assert answered(batch, text_of(3)).reused > 0


def test_a_folder_that_others_can_write_is_refused(tmp_path):
    os.chmod(tmp_path, 0o777)
    with pytest.raises(UsageError, match="can be written by other users"):
        files_in(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--cache-dir"):
        files_in(tmp_path / "file")


# ---- the native backend


@pytest.mark.parametrize("kv", ["float32", "int8"])
@pytest.mark.parametrize("length", [1, 5, 16, 23])
def test_a_saved_sequence_goes_on_in_another_backend_bit_for_bit(kv, length):
    artifact = SimpleNamespace(graph=quantized_graph(0, kv))
    ids = np.random.default_rng(2).integers(0, 50, 24)
    one, two = NativeBackend(artifact, threads=1, slots=2), NativeBackend(artifact, threads=2, slots=3)
    assert isinstance(one, Saving)
    expected = one.forward_many([Segment(1, ids, 24)])[0]
    saved = one.save(1, length)
    two.forward_many([Segment(2, ids[::-1], 1)])
    two.load(2, length, saved)
    assert list(two.positions) == [0, 0, length]
    found = two.forward_many([Segment(2, ids[length:], 24)])[0]
    assert np.array_equal(found.view(np.int32), expected[length:].view(np.int32))
    with pytest.raises(ValueError, match=r"are not of|does not fit"):
        two.load(0, length, saved[:-1])
    with pytest.raises(ValueError, match="does not fit"):
        two.load(0, length, [array.astype(np.float64) for array in saved])
    one.close()
    two.close()
