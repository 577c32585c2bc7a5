"""What is added to logits of chosen tokens as users write it: ids or texts, in flags, JSON, keywords."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from flatlm.runtime.errors import UsageError

Bias = tuple[int | str, float]  # a token's id, or a text that means each of its tokens; what is added

BANNED = -1e9  # far below any logit, and still a number: of banned tokens alone one can be chosen
MOST = 1000  # biases of one answer

_FLAG = re.compile(r"(?P<id>[0-9]+)(?:=|(?=[+-]))(?P<of_id>.+)|(?P<text>.+)=(?P<of_text>[^=]+)", re.DOTALL)


def bias_of_flag(given: str) -> Bias:
    """`15043+1`, `15043-2.5` (llama.cpp's form), `15043=1`, ` Hello=-5`; `false` for a ban."""
    match = _FLAG.fullmatch(given)
    if match is None:
        raise _unfit(given)
    token = int(match["id"]) if match["id"] else match["text"]
    amount = match["of_id"] or match["of_text"]
    try:
        return _bias(token, False if amount == "false" else float(amount))
    except ValueError:
        raise _unfit(given) from None


def biases_of(value: Any) -> tuple[Bias, ...]:
    """A mapping from ids (as numbers or as JSON's texts, as in OpenAI's interface) or a list of pairs, where
    a text is a text (llama.cpp's). The bias is a number, or false for a ban.
    """
    if isinstance(value, Mapping):
        pairs = [
            (int(key) if str(key).isascii() and str(key).isdigit() else key, value[key]) for key in value
        ]
    elif isinstance(value, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in value):
        pairs = [(key, amount) for key, amount in value]
    else:
        raise _unfit(value)
    if len(pairs) > MOST:
        raise UsageError(f"logit_bias has {len(pairs)} entries: {MOST} at most", param="logit_bias")
    return tuple(_bias(key, amount) for key, amount in pairs)


def _bias(token: Any, amount: Any) -> Bias:
    named = isinstance(token, str) or (isinstance(token, int) and not isinstance(token, bool) and token >= 0)
    if amount is False:
        amount = BANNED
    if not named or isinstance(amount, bool) or not isinstance(amount, int | float) or math.isnan(amount):
        raise _unfit([token, amount])
    return token, min(max(float(amount), BANNED), -BANNED)


def _unfit(given: Any) -> UsageError:
    return UsageError(
        f"--logit-bias {given!r:.80}: it must be ID=BIAS or TEXT=BIAS, in JSON an object or pairs; BIAS is a "
        "number, or false for a ban",
        param="logit_bias",
    )
