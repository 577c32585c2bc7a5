"""Tokens in, tokens out: one loop over a backend. It knows nothing of text, templates or files.

Several sequences at once: batch.py. Drafting takes the place of a forward pass: runtime/drafting.
What a backend holds of an earlier call is used again where the new prompt starts with the same ids; a row's
result does not depend on the batch, so the answer is the same either way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flatlm.runtime.errors import ContextError, TokenizerError, UsageError
from flatlm.runtime.generation.sampler import Sampler
from flatlm.runtime.progress import Progress

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend
    from flatlm.runtime.drafting.speculator import Speculator

PREFILL_CHUNK = (
    128  # tokens per call while reading a prompt: weights are read once per chunk, Ctrl-C waits for one
)


def generate(
    backend: Backend,
    prompt: Sequence[int],
    sampler: Sampler,
    n: int = -1,
    stop_ids: Collection[int] = frozenset(),
    *,
    held: list[int] | None = None,
    progress: Progress | None = None,
    chunk: int = PREFILL_CHUNK,
    on_reuse: Callable[[int], None] | None = None,
    speculator: Speculator | None = None,
) -> Iterator[int]:
    """Yield the ids that follow `prompt`, one forward pass each; a stop id is yielded last.

    With a `speculator` (whose `begin` was called with this answer's rule) a pass may give several.

    Ends after `n` ids (-1: no limit) or when the context is full. `held` are the ids the backend's sequence
    consists of; it is kept up to date, so that passing it again continues from the common start, whose length
    `on_reuse` gets. Raises ContextError where the prompt is longer than the context, UsageError where it is
    empty.
    """
    check_prompt(backend, prompt)
    held = [] if held is None else held
    reused = reuse(backend, held, prompt)
    if on_reuse is not None:
        on_reuse(reused)
    if n == 0:
        return
    logits = prefill(backend, held, prompt[reused:], chunk, progress)
    history = list(prompt)
    room = backend.context - len(prompt) + 1  # the last id is not fed back
    left = room if n < 0 else min(n, room)
    written = [sampler(logits, history)]
    while True:
        for number in written:
            history.append(number)
            left -= 1
            yield number
            if number in stop_ids or left == 0:
                return
        if speculator is None:
            written = [sampler(forward(backend, held, written), history)]
        else:
            written = speculator.step(backend, held, history, left, stop_ids)


def check_prompt(backend: Backend, ids: Sequence[int], more: int = 0) -> None:
    """Raise where `ids`, and `more` after them, cannot be read by `backend`."""
    if len(ids) == 0:
        raise UsageError("the prompt is empty: give at least one token to continue")
    length = len(ids) + more
    if length > backend.context:
        raise ContextError(
            f"the prompt is {length} tokens long, the context holds {backend.context}: shorten it "
            "or raise --ctx"
        )
    if max(ids) >= backend.vocab:
        raise TokenizerError(
            f"the tokenizer gives the id {max(ids)}, the model has {backend.vocab}: they do not belong "
            "together; export the model again"
        )


def common_start(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first ids are the same: halved, since Python compares lists without a loop of ours."""
    a, b = (x if isinstance(x, list) else list(x) for x in (a, b))
    same, most = 0, min(len(a), len(b))
    if a[:most] == b[:most]:
        return most
    while most - same > 1:  # the first `same` are the same, the first `most` are not
        middle = (same + most) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            most = middle
    return same


def reuse(backend: Backend, held: list[int], prompt: Sequence[int]) -> int:
    """Cut the backend's sequence back to what `prompt` starts with, and return that length.

    At least the last id of the prompt is left to be read again: its logits are needed.
    """
    known = min(len(held), backend.position)  # they differ where an interrupt fell between the two
    common = min(known, common_start(held, prompt), len(prompt) - 1)
    backend.truncate(common)
    del held[common:]
    return common


def prefill(
    backend: Backend,
    held: list[int],
    ids: Sequence[int],
    chunk: int = PREFILL_CHUNK,
    progress: Progress | None = None,
) -> np.ndarray:
    """Read `ids` in chunks, so that progress shows and an interrupt is heard. Returns the last logits [V]."""
    for start in range(0, len(ids), chunk):
        logits = forward(backend, held, ids[start : start + chunk])
        if progress is not None:
            progress(min(start + chunk, len(ids)), len(ids))
    return logits


def forward(backend: Backend, held: list[int], ids: Sequence[int]) -> np.ndarray:
    """Append `ids` to the sequence. Returns the logits [V] after the last of them."""
    logits = backend.forward(np.asarray(ids, np.int64), logits=1)
    held.extend(ids)
    return logits[-1]
