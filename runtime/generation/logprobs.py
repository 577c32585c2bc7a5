"""How likely a written token was: by the model's own distribution, without filters or penalties.

Taken from the row of logits that the token was chosen by, in float64. A row depends on its own sequence
alone, so these numbers are the same however many answers are written beside it, drafted or not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flatlm.runtime.generation.sampler import likeliest


class TokenLogprob(NamedTuple):
    """A token and the log of its probability (natural, ≤ 0); `top` are the likeliest ones in order."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def logprob_of(row: np.ndarray, token: int, top: int = 0) -> TokenLogprob:
    """Of `token`, and of the `top` likeliest ones, by logits [V]; of equal ones the lower id comes first."""
    wide = row.astype(np.float64)
    highest = wide.max()
    total = highest + np.log(np.exp(wide - highest).sum())
    places = likeliest(row, top) if top else np.empty(0, np.int64)
    places = places[np.argsort(-row[places], kind="stable")][:top]
    return TokenLogprob(
        token, float(wide[token] - total), tuple((int(i), float(wide[i] - total)) for i in places)
    )
