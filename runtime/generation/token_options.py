"""Options that speak of texts, said in ids: what a sampler can follow without a tokenizer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from flatlm.runtime.errors import UsageError
from flatlm.runtime.logit_bias import BANNED
from flatlm.runtime.options import SamplingOptions

if TYPE_CHECKING:
    from flatlm.runtime.text.tokenizer import Tokenizer


def in_ids(options: SamplingOptions, tokenizer: Tokenizer, vocab: int) -> SamplingOptions:
    """`options` whose biases are of ids below `vocab` alone: texts become their tokens, `ignore_eos` a ban of
    all that end an answer. UsageError for an id that the model does not have.
    """
    biases: list[tuple[int, float]] = []
    for token, amount in options.logit_bias:
        ids = [token] if isinstance(token, int) else tokenizer.encode(token, special=False)
        biases += [(number, amount) for number in ids]
    for number, _ in biases:
        if number >= vocab:
            raise UsageError(f"--logit-bias {number}: the model has {vocab} tokens", param="logit_bias")
    if options.ignore_eos:
        biases += [(number, BANNED) for number in sorted(tokenizer.eos_ids) if number < vocab]
    return replace(options, logit_bias=tuple(biases)) if biases else options
