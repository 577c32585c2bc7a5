"""A smaller model as drafter: any artifact with the target's tokenizer.

It keeps a K/V cache of its own, cut back to what a new sequence has in common with the last one. It writes a
token per pass, or reviews the guesses of a cheaper drafter in one: the same tokens in fewer passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flatlm.kernels_arm.files import read_regular
from flatlm.runtime.drafting import Choose, Guess
from flatlm.runtime.drafting.costs import OUTLIER, Costs
from flatlm.runtime.drafting.short_head import ShortHead
from flatlm.runtime.errors import UsageError
from flatlm.runtime.generation import engine
from flatlm.runtime.generation.engine import common_start
from flatlm.runtime.generation.sampler import find
from flatlm.runtime.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend

FEW = 32  # tokens that are read in one pass with the draft
CLASSES = 8  # of trust: equal parts of the probability the model gives its guess


class ModelDrafter:
    """Drafts with `backend`, for a target that knows the ids below `vocab`. Owns the backend.

    `size` is what it reads for a token, as a share of what the target does; `costs` what is known of its
    passes. The first one of a process may have to fetch the weights from a disk: `loading` are its seconds
    beyond OUTLIER times the expected, which tell nothing of the others.
    """

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
        self._held: list[int] = []
        self._choose: Choose | None = None

    def begin(self, choose: Choose) -> None:
        self._choose = choose

    def propose(self, ids: Sequence[int], n: int) -> list[Guess]:
        """`n` tokens in `n` passes; fewer at the end of this model's context."""
        guesses: list[Guess] = []
        past = list(ids)
        while len(guesses) < n and (more := self.review(past)):
            guesses += more
            past += [guess.token for guess in more]
        return guesses

    def review(self, ids: Sequence[int], draft: Sequence[Guess] = (), lenience: float = 1.0) -> list[Guess]:
        """One pass over `ids` and `draft`: the guesses this model would have made too, and one of its own.

        A guess x of another token passes as well where p(x) · lenience ≥ the chance its source gave it, p
        being this model's distribution without temperature; with lenience 1 none does. What comes of a
        lenient review has no law: it is not drawn from this model's. Empty at the end of the context.
        """
        tokens = [guess.token for guess in draft]
        if self.behind(ids, tokens) is None:
            return []
        rows = self._pass(ids, tokens)
        past, result = list(ids), []
        for i, row in enumerate(rows):
            given = draft[i] if i < len(draft) else None
            mine = self._guess(row, past)
            if lenience > 1:
                mine = self._lenient(row, given, mine, lenience)
            result.append(mine)
            past.append(mine.token)
            if given is None or given.token != mine.token:
                break
        return result

    def _guess(self, row: np.ndarray, past: Sequence[int]) -> Guess:
        assert self._choose is not None, "begin() comes before the first guess"
        ids = self._ids()
        sayable = np.searchsorted(ids, self._vocab)
        token, law = self._choose(row[:sayable], past, ids[:sayable])
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

    def behind(self, ids: Sequence[int], tokens: Sequence[int] = ()) -> int | None:
        """How many of `ids` this model has not read yet; None where it cannot read them and `tokens`.

        They may not fit its context, or not be known to it: the target's padding ids.
        """
        known, new = self._backend.vocab, ids[common_start(self._held, ids) :]
        fits = len(ids) + len(tokens) <= self._backend.context
        reads = fits and max(new, default=0) < known and max(tokens, default=0) < known
        return len(new) if reads else None

    def close(self) -> None:
        self._backend.close()

    def _pass(self, ids: Sequence[int], tokens: list[int]) -> np.ndarray:
        """Logits [1 + tokens, ids] after `ids` and after each of `tokens`."""
        new = list(ids[engine.reuse(self._backend, self._held, ids) :])
        started = self._clock()
        if len(new) > FEW:  # apart, so that it is known what a pass over few rows costs
            engine.prefill(self._backend, self._held, new[:-1])
            self._count(len(new) - 1, started)
            new, started = new[-1:], self._clock()
        fed = new + tokens
        rows = self._backend.forward(np.array(fed, np.int64), logits=1 + len(tokens))
        self._held.extend(fed)
        self._count(len(fed), started)
        return rows

    def _count(self, rows: int, started: float) -> None:
        seconds = usual = self._clock() - started
        if not self.passes and (expected := self.costs(rows)):
            usual = min(seconds, OUTLIER * expected)
            self.loading = seconds - usual
        self.costs.add(rows, usual)
        self.passes, self.seconds = self.passes + 1, self.seconds + seconds


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
