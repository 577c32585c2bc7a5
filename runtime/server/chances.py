"""Log probabilities on the wire: OpenAI's for chats, its older form for completions, llama.cpp's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flatlm.runtime.errors import UsageError
from flatlm.runtime.generation.logprobs import TokenLogprob
from flatlm.runtime.settings import Settings
from flatlm.runtime.text.pieces import piece_of
from flatlm.runtime.text.tokenizer import Tokenizer

MOST = 20  # likeliest tokens beside each


def of_chat(body: Settings) -> int | None:
    """How many likeliest tokens `logprobs` and `top_logprobs` ask for; None: no log probabilities."""
    top = body.get("top_logprobs", int, 0, low=0, high=MOST)
    if not body.get("logprobs", bool, False):
        if top:
            raise UsageError("top_logprobs needs logprobs: true", param="top_logprobs")
        return None
    return top


def of_completion(body: Settings) -> int | None:
    """The same of `logprobs` in /v1/completions, a number there; true for those who think of chats."""
    if type(body.values.get("logprobs")) is bool:
        return of_chat(body)
    return body.get("logprobs", int, low=0, high=MOST)


def _token(tokenizer: Tokenizer, number: int, logprob: float) -> dict[str, Any]:
    piece = piece_of(tokenizer, number)
    return {"token": piece.decode(errors="replace"), "bytes": list(piece), "logprob": logprob}


def chat_logprobs(found: Sequence[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """`logprobs` of a choice of a chat."""
    content = []
    for one in found:
        top = [_token(tokenizer, number, logprob) for number, logprob in one.top]
        content.append({**_token(tokenizer, one.token, one.logprob), "top_logprobs": top})
    return {"content": content}


def completion_logprobs(found: Sequence[TokenLogprob], tokenizer: Tokenizer, start: int) -> dict[str, Any]:
    """`logprobs` of a choice of a completion, whose text goes on at the character `start`.

    With `content` as of a chat beside it: llama.cpp's clients read that.
    """
    shown = chat_logprobs(found, tokenizer)
    texts = [one["token"] for one in shown["content"]]
    offsets = [start + sum(map(len, texts[:place])) for place in range(len(texts))]
    tops = [{one["token"]: one["logprob"] for one in row["top_logprobs"]} for row in shown["content"]]
    chances = [one.logprob for one in found]
    return {"tokens": texts, "token_logprobs": chances, "top_logprobs": tops, "text_offset": offsets, **shown}


def probabilities(found: Sequence[TokenLogprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """`completion_probabilities` of llama.cpp."""
    rows = []
    for one in found:
        top = [{"id": number, **_token(tokenizer, number, logprob)} for number, logprob in one.top]
        rows.append({"id": one.token, **_token(tokenizer, one.token, one.logprob), "top_logprobs": top})
    return rows
