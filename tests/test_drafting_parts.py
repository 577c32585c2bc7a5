"""flatlm.runtime.drafting: what each drafter proposes, and what `--draft` may say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.runtime.drafting import Ask, Guess, Offer, Place
from flatlm.runtime.drafting.bigrams import BIGRAMS, load_bigrams
from flatlm.runtime.drafting.cascade import PUBLISHED, Cascade
from flatlm.runtime.drafting.costs import Costs
from flatlm.runtime.drafting.maxgram import MaxGram, trust
from flatlm.runtime.drafting.model import ModelDrafter, require_same_tokenizer
from flatlm.runtime.drafting.spec import DraftSpec, _own_name, parse_draft
from flatlm.runtime.drafting.suffixes import SuffixIndex
from flatlm.runtime.drafting.verify import invariant
from flatlm.runtime.errors import FormatError, UsageError
from flatlm.runtime.generation.sampler import greedy, make_sampler
from flatlm.runtime.options import SamplingOptions
from tests.interrupts import interrupted_after
from tests.tiny_text import FakeBackend, byte_level, write_folder

texts = st.lists(st.integers(0, 2), min_size=1, max_size=60)


def longest_match(ids, latest=False):
    """By definition: (length, place), trying all lengths and places."""
    for length in range(len(ids) - 1, 0, -1):
        suffix = ids[-length:]
        starts = [i for i in range(len(ids) - length) if ids[i : i + length] == suffix]
        if starts:
            return length, (starts[-1] if latest else starts[0]) + length
    return 0, len(ids)


def tokens(guesses):
    return [guess.token for guess in guesses]


class Followed:
    """A drafter with one sequence that it follows greedily."""

    def __init__(self, drafter):
        self.drafter, self.state = drafter, drafter.begin(invariant(make_sampler(SamplingOptions())))

    def propose(self, ids, n):
        guesses = []
        while len(guesses) < n and (more := self.review([*ids, *tokens(guesses)], n=n - len(guesses))):
            guesses += more
        return guesses

    def review(self, ids, draft=(), lenience=1.0, n=99):
        place = Place(self.state, list(ids), n)
        return self.drafter.draft([Offer(place, reviewed=draft, lenience=lenience)])[0]


def proposed(cascade, ids, n):
    """The draft of a cascade for one sequence."""
    (draft,) = cascade.propose([Ask(cascade.begin(invariant(make_sampler(SamplingOptions()))), ids, n)])
    return draft.guesses


def found(drafter, ids, n):
    """What Max-Gram proposes in a sequence of its own."""
    return drafter.propose(drafter.begin(), ids, n)


# ---- Max-Gram


@given(texts)
def test_a_match_is_the_longest_suffix_that_occurs_before(ids):
    index = SuffixIndex()
    for count, number in enumerate(ids, start=1):
        index.push(number)
        for latest in (False, True):
            assert index.match(latest) == longest_match(ids[:count], latest)


@given(texts, texts, texts)
def test_after_popping_the_index_is_as_if_nothing_had_been_pushed(kept, dropped, new):
    index, fresh = SuffixIndex(), SuffixIndex()
    index.follow(kept + dropped, 0)
    index.follow(kept + new, len(kept))
    fresh.follow(kept + new, 0)
    assert vars(index) == vars(fresh)


def test_the_work_per_token_does_not_grow_with_the_text():
    index = SuffixIndex()
    index.follow(np.random.default_rng(0).integers(0, 50, 3000).tolist() + [7] * 1000, 0)
    work = np.diff([push.changes for push in index._pushes], append=len(index._changes)) / 3
    assert sum(work[:3000]) / 3000 < 10
    assert max(work[3100:]) < 70


def test_maxgram_proposes_what_followed_the_earliest_match_or_the_latest():
    ids = [5, 1, 2, 8, 5, 1, 2, 9, 4, 1, 2]
    assert tokens(found(MaxGram(), ids, 3)) == [8, 5, 1]
    assert tokens(found(MaxGram(latest=True), ids, 3)) == [9, 4, 1]


def test_one_token_is_enough_for_a_match_and_a_new_one_is_not():
    assert tokens(found(MaxGram(), [1, 2, 3, 1], 2)) == [2, 3]
    assert tokens(found(MaxGram(), [1, 2, 3, 4], 2)) == []


def test_bigrams_fill_what_a_match_does_not_give():
    bigrams = np.array([-1, 2, 3, 0], np.int32)
    assert tokens(found(MaxGram(bigrams), [1], 5)) == [2, 3, 0]
    assert tokens(found(MaxGram(bigrams), [3, 1, 3], 4)) == [1, 3, 0]


def test_trust_grows_with_the_match_and_along_the_proposal():
    assert [g.trust for g in found(MaxGram(), [1, 2, 3, 4, 9, 1, 2], 3)] == [trust(2), trust(3), trust(4)]
    assert [trust(n) for n in (0, 1, 2, 3, 4, 8, 31, 32, 500)] == [0, 1, 2, 2, 3, 4, 5, 6, 6]


@settings(max_examples=30)
@given(st.lists(texts, min_size=1, max_size=4))
def test_maxgram_follows_whatever_sequence_it_is_given(sequences):
    drafter = MaxGram()
    state = drafter.begin()
    for ids in sequences:
        assert drafter.propose(state, ids, 6) == found(MaxGram(), ids, 6)


def test_an_interrupt_leaves_maxgram_as_good_as_new():
    count = 0
    for lines in range(1, 200):
        drafter = MaxGram()
        state = drafter.begin()
        with interrupted_after(lines, SuffixIndex.push, SuffixIndex.pop) as came:
            drafter.propose(state, [1, 2, 1, 2, 1, 3, 1, 2, 1], 4)
            drafter.propose(state, [1, 2, 1, 3, 1, 3, 2, 1, 3], 4)
        count += bool(came)
        for ids in ([1, 2, 1, 3, 1, 3, 2, 1, 3], [1, 2, 1, 2, 1], [5]):
            assert drafter.propose(state, ids, 4) == found(MaxGram(), ids, 4)
    assert count > 100


def test_an_interrupt_leaves_costs_as_good_as_before(monkeypatch):
    monkeypatch.setattr("flatlm.runtime.drafting.costs.SWEEP", 4)
    monkeypatch.setattr("flatlm.runtime.drafting.costs.STALE", 6)
    count = 0
    for lines in range(1, 400):
        costs = Costs()
        with interrupted_after(lines, Costs.add, Costs._forget, Costs.scale) as came:
            for rows in (1, 9, 1, 5, 1, 1, 1, 30, 1, 7, 1, 1, 2, 1, 1, 1):
                costs.add(rows, float(rows))
                costs.scale(1.0)
        count += bool(came)
        assert all(costs(m) >= 0 for m in range(1, 40))
        for rows in (1, 3, 11, 1):
            costs.add(rows, float(rows))
            assert all(costs(m) > 0 for m in range(1, 40))
        assert costs._rows == sorted(costs._average)
        Costs().recall(costs.memory())
    assert count > 100


def test_drafters_are_told_apart_by_their_names():
    taken = ["maxgram"]
    for name in ("a/m", "b/m", "b/m", "b/m", "./maxgram"):
        taken.append(_own_name(name, taken))
    assert taken == ["maxgram", "m", "b/m", "b/m (2)", "b/m (3)", "./maxgram"]


def test_a_table_of_bigrams_is_read_and_checked(tmp_path):
    assert load_bigrams(tmp_path, 3) is None
    np.array([2, -1, 0], "<i4").tofile(tmp_path / BIGRAMS)
    assert load_bigrams(tmp_path, 3).tolist() == [2, -1, 0]
    for wrong in ([2, -1], [2, -1, 3], [2, -2, 0]):
        np.array(wrong, "<i4").tofile(tmp_path / BIGRAMS)
        with pytest.raises(FormatError, match="no table of 3 ids"):
            load_bigrams(tmp_path, 3)
    (tmp_path / BIGRAMS).write_bytes(b"\0" * 13)
    with pytest.raises(FormatError, match=BIGRAMS):
        load_bigrams(tmp_path, 3)


# ---- models


def greedy_answer(ids, n, vocab=300):
    backend, answer = FakeBackend(vocab=vocab), []
    for _ in range(n):
        backend.truncate(0)
        answer.append(greedy(backend.forward(np.array([*ids, *answer]))[0]))
    return answer


def test_a_model_drafts_what_it_would_write():
    drafter = Followed(ModelDrafter("small", FakeBackend(), 300))
    assert tokens(drafter.propose([1, 2, 3], 4)) == greedy_answer([1, 2, 3], 4)
    assert drafter.drafter.passes == 4


def test_a_model_reads_only_what_is_new():
    backend = FakeBackend()
    drafter = Followed(ModelDrafter("small", backend, 300))
    drafter.propose([1, 2, 3], 1)
    drafter.propose([1, 2, 3, 9], 1)
    drafter.propose([1, 2, 8], 1)
    assert backend.calls == [[1, 2, 3], [9], [8]]
    assert drafter.drafter.behind(drafter.state, [1, 2, 8, 4, 4]) == 2


def test_a_review_writes_the_same_in_fewer_passes():
    right = greedy_answer([1, 2], 5)
    drafter = Followed(ModelDrafter("small", FakeBackend(), 300))
    draft = [Guess(token, "other") for token in [*right[:3], 299]]
    assert tokens(drafter.review([1, 2], draft)) == right[:4]
    assert drafter.drafter.passes == 1
    assert tokens(drafter.propose([1, 2, *right[:4]], 1)) == right[4:]


@pytest.mark.parametrize(("lenience", "kept"), [(1.0, False), (1.9, False), (2.1, True)])
def test_a_lenient_review_keeps_a_guess_that_is_likely_enough(lenience, kept):
    class Fixed(FakeBackend):
        def row(self):
            return np.log([0.5, 0.4, 0.1])

    drafter = Followed(ModelDrafter("small", Fixed(vocab=3), 3))
    result = drafter.review([1], [Guess(1, "other", chance=0.8)], lenience)
    assert tokens(result) == ([1, 0] if kept else [0])
    assert result[0].source == ("other" if kept else "small")
    assert result[0].chance == pytest.approx(0.4 if kept else 0.5)


def test_a_model_never_proposes_what_the_target_does_not_know():
    drafter = Followed(ModelDrafter("large vocabulary", FakeBackend(vocab=300), 40))
    assert max(tokens(drafter.propose([1, 2, 3], 20))) < 40


def test_a_model_says_nothing_about_ids_it_does_not_know_or_beyond_its_context():
    drafter = Followed(ModelDrafter("small", FakeBackend(vocab=20, context=6), 300))
    assert drafter.propose([1, 25], 3) == []
    assert drafter.review([1, 2], [Guess(25, "other")]) == []
    assert len(drafter.propose([1, 2, 3, 4], 9)) == 3


def test_an_interrupt_in_a_drafting_model_leaves_it_right():
    class Interrupted(FakeBackend):
        def forward(self, ids, logits=1):
            rows = super().forward(ids, logits)
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return rows

    drafter = Followed(ModelDrafter("small", Interrupted(), 300))
    with pytest.raises(KeyboardInterrupt):
        drafter.propose([1, 2, 3], 4)
    assert tokens(drafter.propose([1, 2, 7], 3)) == greedy_answer([1, 2, 7], 3)


def test_models_of_one_tokenizer_may_pad_it_differently_and_other_tokenizers_are_named(tmp_path):
    target, same = (write_folder(tmp_path / name, byte_level()) for name in "ab")
    require_same_tokenizer(target, same)
    (same / "tokenizer.json").write_text((same / "tokenizer.json").read_text() + "\n")
    require_same_tokenizer(target, same)
    other = write_folder(tmp_path / "c", byte_level([("a", "b")]))
    with pytest.raises(UsageError, match=r"1 tokens differ, 'ab' for instance is 259 there and unknown here"):
        require_same_tokenizer(target, other)


# ---- the published cascade


class Scripted:
    """A drafter that proposes 1, 2, 3 … and notes what it was asked."""

    name, costs = "scripted", None

    def __init__(self, most=99):
        self.most, self.asked = most, []

    def begin(self, rule): ...

    def close(self): ...

    def draft(self, offers):
        self.asked += [(len(offer.place.ids), offer.place.n) for offer in offers]
        return [[Guess(i + 1, self.name) for i in range(min(offer.place.n, self.most))] for offer in offers]


class Reviewer(ModelDrafter):
    """A model that keeps `keeps` of every draft, adds 0, and notes what it was given."""

    def __init__(self, keeps):
        super().__init__("reviewer", FakeBackend(), 300)
        self.keeps, self.given = keeps, []

    def draft(self, offers):
        self.given += [(len(o.place.ids), len(o.reviewed), o.lenience) for o in offers]
        return [[*offer.reviewed[: self.keeps], Guess(0, self.name)] for offer in offers]


def test_a_statistical_drafter_alone_proposes_ten_at_a_time_until_k_is_reached():
    drafter = Scripted()
    assert len(proposed(Cascade([drafter], ((25,),), 1.0), [5], 99)) == 30
    assert drafter.asked == [(1, 10), (11, 10), (21, 10)]


def test_a_model_alone_writes_k_tokens_one_by_one():
    model = Reviewer(0)
    assert len(proposed(Cascade([model], ((4,),), 1.0), [5], 99)) == 4
    assert model.given == [(1, 0, 1.0), (2, 0, 1.0), (3, 0, 1.0), (4, 0, 1.0)]


def test_the_published_matrix_for_two_drafters_is_followed():
    model, statistical = Reviewer(5), Scripted()
    guesses = proposed(Cascade([model, statistical], *PUBLISHED["llama2"]), [5], 99)
    assert model.given == [(1, 10, 3.0), (7, 10, 3.0), (13, 10, 3.0)]  # 6 tokens each, until there are 13
    assert [n for _, n in statistical.asked] == [10, 10, 10, 10]  # for the model, and last for the target
    assert len(guesses) == 18 + 10


def test_the_published_matrix_for_three_drafters_is_followed():
    large, small, statistical = Reviewer(1), Reviewer(2), Scripted()
    guesses = proposed(Cascade([large, small, statistical], *PUBLISHED["flan-t5"]), [5], 99)
    # for the large model: one step of the small one (3 tokens), then 10 of the statistical drafter
    assert large.given == [(1, 13, 5.0), (3, 13, 5.0), (5, 13, 5.0)]
    assert len(guesses) == 6 + 9 + 10  # of large until 5, of small until 13, then 10 more
    assert [draft for _, draft, _ in small.given] == [10] * 6


@settings(max_examples=30)
@given(st.integers(0, 40), st.sampled_from(sorted(PUBLISHED)))
def test_a_cascade_never_proposes_more_than_asked(n, name):
    K, lenience = PUBLISHED[name]
    drafters = [*(Reviewer(3) for _ in K[1:]), Scripted()]
    assert len(proposed(Cascade(drafters, K, lenience), [5], n)) <= n


def test_a_cascade_ends_where_its_drafters_know_nothing():
    assert proposed(Cascade([Scripted(0)], ((10,),), 1.0), [5], 99) == []


# ---- what --draft may say


THREE = ("small", "tiny", "maxgram")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("small", "tiny"):
        (tmp_path / name).mkdir()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("off", None),
        ("auto", DraftSpec(("maxgram",))),
        ("auto:small,tiny", DraftSpec(("maxgram", "small", "tiny"))),
        ("maxgram", DraftSpec(("maxgram",))),
        ("maxgram-latest", DraftSpec(("maxgram-latest",))),
        ("small", DraftSpec(("small",))),
        ("cascade:maxgram", DraftSpec(("maxgram",), ((10,),), 1.0)),
        ("cascade:small:8", DraftSpec(("small",), ((8,),), 1.0)),
        ("cascade:small,maxgram", DraftSpec(("small", "maxgram"), *PUBLISHED["llama2"])),
        ("cascade:small,maxgram:4,3/2:1.5", DraftSpec(("small", "maxgram"), ((4, 3), (2,)), 1.5)),
        ("cascade:small,tiny,maxgram:flan-t5-l2", DraftSpec(THREE, *PUBLISHED["flan-t5-l2"])),
        ("cascade:small,tiny,maxgram", DraftSpec(THREE, *PUBLISHED["flan-t5"])),
        ("cascade:small,maxgram:llama2:2", DraftSpec(("small", "maxgram"), PUBLISHED["llama2"][0], 2.0)),
    ],
)  # fmt: skip
def test_a_draft_is_parsed(folder, text, expected):
    assert parse_draft(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v1:0", DraftSpec(("v1:0",))),
        ("auto:v1:0", DraftSpec(("maxgram", "v1:0"))),
        ("auto:p,q", DraftSpec(("maxgram", "p,q"))),
        ("auto:small,p,q,tiny", DraftSpec(("maxgram", "small", "p,q", "tiny"))),
        ("cascade:v1:0,maxgram:5,4/3", DraftSpec(("v1:0", "maxgram"), ((5, 4), (3,)), 1.0)),
        ("cascade:v1:0:8:2", DraftSpec(("v1:0",), ((8,),), 2.0)),
        ("cascade:p,q,maxgram", DraftSpec(("p,q", "maxgram"), *PUBLISHED["llama2"])),
        ("cascade:small:8", DraftSpec(("small:8",), ((10,),), 1.0)),  # a folder of that name is there
    ],
)
def test_a_folder_may_have_commas_and_colons(folder, tmp_path, text, expected):
    for name in ("v1:0", "p,q", "small:8"):
        (tmp_path / name).mkdir()
    assert parse_draft(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x" * 5000, "no folder of an exported model"),
        ("a\0b", "no folder of an exported model"),
        ("maxgramm", "no folder of an exported model; did you mean 'maxgram'"),
        ("auto:missing", "'missing' is no folder"),
        ("auto:", "'' is no folder"),
        ("auto:maxgram", "auto has maxgram already"),
        ("cascade:", "write cascade:DRAFTER"),
        ("cascade:maxgram,small", "maxgram reviews nothing, so it must be the last"),
        ("cascade:small,tiny,small,maxgram", "no published K for 4 drafters"),
        ("cascade:small,maxgram:5", "K for 2 drafters has the form N,N/N"),
        ("cascade:small,maxgram:llama", "no matrix; did you mean 'llama2'"),
        ("cascade:maxgram:-3", "without negative numbers"),
        ("cascade:maxgram:1000", "must sum to 1 … 512"),
        ("cascade:small,maxgram:llama2:0.5", "lenience '0.5' must be a number of 1 or more"),
        ("cascade:maxgram:5:nan", "lenience 'nan'"),
        ("cascade:maxgram:5:1:2", "write cascade:"),
    ],
)
def test_a_draft_that_cannot_be_meant_is_explained(folder, text, message):
    with pytest.raises(UsageError, match=message):
        parse_draft(text)
