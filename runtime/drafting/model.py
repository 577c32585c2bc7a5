"""A smaller model as drafter: any artifact with the target's tokenizer.

It keeps a K/V cache of its own for each sequence, cut back to what that has in common with the last draft. It
writes a token per pass, or reviews the guesses of a cheaper drafter in one: the same tokens in fewer passes.
One pass serves all sequences that take part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flatlm.kernels_arm.files import read_regular
from flatlm.runtime.backends import Segment
from flatlm.runtime.drafting import NEXT, Guess, Known, Odds, Offer, Place, Rule
from flatlm.runtime.drafting.costs import OUTLIER, Costs
from flatlm.runtime.drafting.short_head import ShortHead
from flatlm.runtime.errors import UsageError
from flatlm.runtime.generation.sampler import find
from flatlm.runtime.generation.sequence import NOWHERE, PREFILL_CHUNK, Slots, TokenSequence, common_start
from flatlm.runtime.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend

FEW = 32  # tokens that are read in one pass with the draft
AHEAD = 8  # passes that are thought of at once
HOPELESS = 0.02  # chances of a review below it are not added up
CLASSES = 8  # of trust: equal parts of the probability the model gives its guess

# At first a model is taken at its word.
ASSUMED: Odds = {NEXT: 0.7, **{i: (i + 0.5) / CLASSES for i in range(CLASSES)}}


class ModelState:
    """What the model has read of one answer, and the rule it writes by."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.sequence = TokenSequence([])
        self.known = 0  # before it has a slot: how much of its ids some slot holds
        self.looked = False


class ModelDrafter:
    """Drafts with `backend`, for a target that knows the ids below `vocab`. Owns the backend.

    `size` is what it reads for a token, as a share of what the target does; `costs` what is known of its
    passes. The first one of a process may have to fetch the weights from a disk: `loading` are its seconds
    beyond OUTLIER times the expected, which tell nothing of the others.
    """

    assumed = ASSUMED

    def __init__(
        self,
        name: str,
        backend: Backend,
        vocab: int,
        clock: Callable[[], float] = time.perf_counter,
        size: float = 0.0,
        costs: Costs | None = None,
    ) -> None:
        self.name, self.passes, self.seconds, self.loading = name, 0, 0.0, 0.0
        self.costs, self.size = Costs() if costs is None else costs, size
        self._backend, self._vocab, self._clock = backend, vocab, clock
        self._slots = Slots(backend)

    def begin(self, rule: Rule) -> ModelState:
        return ModelState(rule)

    def end(self, state: ModelState) -> None:
        self._slots.leave(state.sequence)

    def offer(self, place: Place, known: Known) -> Offer | None:
        """A pass over as much of what is at hand as makes its tokens cheapest."""
        if not self.costs:
            self.costs.assumed = self.size * known.plain()
        reviewed, tokens = self._cheapest(place.at_hand[: place.n - 1], known)
        behind = self.behind(place.state, place.ids, [guess.token for guess in reviewed])
        if behind is None:
            return None
        chances, rows = (known.right(self),) * AHEAD, 1 + len(reviewed)
        if behind <= FEW:
            return Offer(place, (), chances, reviewed, rows, tokens)
        return Offer(place, (), chances, reviewed, rows, tokens, behind, self.costs(behind))

    def _cheapest(self, run: Sequence[Guess], known: Known) -> tuple[Sequence[Guess], float]:
        """How much of `run` to review for the fewest seconds a token, and how many tokens that brings."""
        costs = self.costs
        used, most, cheapest = 0, 1.0, costs(1)
        expected, agreed = 1.0, 1.0
        for count, guess in enumerate(run, start=1):
            agreed *= known.agrees(self, guess)
            expected += agreed
            cost = costs(1 + count) / expected
            if cost < cheapest:
                used, most, cheapest = count, expected, cost
            if agreed < HOPELESS:
                break
        return run[:used], most

    def draft(self, offers: Sequence[Offer]) -> list[list[Guess]]:
        """One pass for all: of what is reviewed the guesses this model would have made too, and one of its
        own.

        A guess x of another token passes as well where p(x) · lenience ≥ the chance its source gave it, p
        being this model's distribution without temperature; with lenience 1 none does. What comes of a
        lenient review has no law: it is not drawn from this model's. Empty at the end of the context.
        """
        tokens = [[guess.token for guess in offer.reviewed] for offer in offers]
        able = [
            number
            for number, offer in enumerate(offers)
            if self.behind(offer.place.state, offer.place.ids, tokens[number]) is not None
        ]
        found: list[list[Guess]] = [[] for _ in offers]
        if able:
            passed = self._pass([(offers[number].place, tokens[number]) for number in able])
            for number, rows in zip(able, passed, strict=True):
                found[number] = self._reviewed(offers[number], rows)
        return found

    def _reviewed(self, offer: Offer, rows: np.ndarray) -> list[Guess]:
        past, result = list(offer.place.ids), list[Guess]()
        for i, row in enumerate(rows):
            given = offer.reviewed[i] if i < len(offer.reviewed) else None
            mine = self._guess(row, past, offer.place.state.rule)
            if offer.lenience > 1:
                mine = self._lenient(row, given, mine, offer.lenience)
            result.append(mine)
            past.append(mine.token)
            if given is None or given.token != mine.token:
                break
        return result

    def _guess(self, row: np.ndarray, past: Sequence[int], rule: Rule) -> Guess:
        ids = self._ids()
        sayable = np.searchsorted(ids, self._vocab)
        token, law = rule.choose(row[:sayable], past, ids[:sayable])
        chance = self._share(row, token)
        return Guess(token, self.name, chance, min(int(chance * CLASSES), CLASSES - 1), law)

    def _lenient(self, row: np.ndarray, given: Guess | None, mine: Guess, lenience: float) -> Guess:
        """`given` where it passes, else `mine`."""
        if given is not None and given.token != mine.token:
            chance = self._share(row, given.token)
            if chance * lenience >= given.chance:
                return given._replace(chance=chance, law=None)
        return mine._replace(law=None)

    def _share(self, row: np.ndarray, token: int) -> float:
        """The probability of `token` by a row of logits; 0 of what a short head does not know."""
        place, there = find(self._ids(), np.array(token))
        return float(1.0 / np.exp(row - row[place]).sum()) if there and row[place] > -np.inf else 0.0

    def _ids(self) -> np.ndarray:
        """Those that logits belong to, ascending."""
        return self._backend.ids if isinstance(self._backend, ShortHead) else self._all_ids

    @cached_property
    def _all_ids(self) -> np.ndarray:
        return np.arange(self._backend.vocab)

    def behind(self, state: ModelState, ids: list[int], tokens: Sequence[int] = ()) -> int | None:
        """How many of `ids` this model has not read yet; None where it cannot read them and `tokens`.

        They may not fit its context, or not be known to it: the target's padding ids.
        """
        if len(ids) + len(tokens) > self._backend.context:
            return None
        sequence = state.sequence
        if sequence.slot == NOWHERE:
            if not self._slots.free():
                return None
            if not state.looked:  # once: it is the prompt that others may have read
                state.known, state.looked = max(self._slots.known(ids)), True
            read = state.known
        else:
            read = min(sequence.read, common_start(sequence.ids, ids))
        known = self._backend.vocab
        if known < self._vocab and (max(ids[read:], default=0) >= known or max(tokens, default=0) >= known):
            return None
        return len(ids) - read

    def read(self, offer: Offer) -> None:
        """A few of the unread tokens, the last in a pass of its own: one row and many are known then."""
        state, ids = offer.place.state, offer.place.ids
        end = min(self._follow(state, ids, ids).read + FEW, len(ids) - 1)
        self._prefill(state, end - 1)
        self._prefill(state, end)

    def _pass(self, asked: Sequence[tuple[Place, list[int]]]) -> list[np.ndarray]:
        """Logits [1 + tokens, ids] after the ids of each place and after each of its tokens."""
        segments, started = [], self._clock()
        for place, tokens in asked:
            sequence = self._follow(place.state, place.ids, place.ids + tokens, 1 + len(tokens))
            if len(place.ids) - sequence.read > FEW:  # apart: so it is known what a pass over few rows costs
                self._prefill(place.state, len(place.ids) - 1)
                started = self._clock()
            segments.append(self._slots.unread(sequence, 1 + len(tokens)))
        rows = self._backend.forward_many(segments)
        self._count(sum(len(segment.ids) for segment in segments), started)
        for (place, _), segment in zip(asked, segments, strict=True):
            place.state.sequence.read += len(segment.ids)
        return rows

    def _follow(self, state: ModelState, ids: list[int], fed: list[int], least: int = 1) -> TokenSequence:
        """The sequence becomes `fed`, of which `ids` are certain; at first it is given a slot."""
        sequence = state.sequence
        if sequence.slot == NOWHERE:
            sequence.ids = ids
            self._slots.place(sequence)
        sequence.become(fed, least)
        return sequence

    def _prefill(self, state: ModelState, end: int) -> None:
        """Read on up to `end`, in chunks; no logits are wanted."""
        sequence, started = state.sequence, self._clock()
        count = end - sequence.read
        while sequence.read < end:
            self._slots.cut_back(sequence)
            ids = sequence.ids[sequence.read : min(end, sequence.read + PREFILL_CHUNK)]
            self._backend.forward_many([Segment(sequence.slot, ids, 0)])
            sequence.read += len(ids)
        self._count(count, started)

    def _count(self, rows: int, started: float) -> None:
        seconds = usual = self._clock() - started
        if not self.passes and (expected := self.costs(rows)):
            usual = min(seconds, OUTLIER * expected)
            self.loading = seconds - usual
        self.costs.add(rows, usual)
        self.passes, self.seconds = self.passes + 1, self.seconds + seconds

    def close(self) -> None:
        self._backend.close()


def require_same_tokenizer(
    target: Path | str, drafter: Path | str, tokenizer: Tokenizer | None = None
) -> None:
    """UsageError where a token of the artifact `drafter` means something else in the artifact `target`.

    Sizes of vocabularies do not count: models of one family pad them differently.
    """
    files = [Path(folder) / "tokenizer.json" for folder in (target, drafter)]
    if all(file.is_file() for file in files) and read_regular(files[0]) == read_regular(files[1]):
        return
    ours = (tokenizer or load_tokenizer(target)).hf.get_vocab(with_added_tokens=True)
    theirs = load_tokenizer(drafter).hf.get_vocab(with_added_tokens=True)
    other = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
    if other:
        token = min(other, key=lambda t: (ours.get(t, theirs.get(t)), t))
        raise UsageError(
            f"{drafter} cannot draft for {target}: {len(other)} tokens differ, {token!r} for instance is "
            f"{theirs.get(token, 'unknown')} there and {ours.get(token, 'unknown')} here; use a model of the "
            "same family"
        )
