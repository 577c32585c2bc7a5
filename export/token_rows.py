"""Whether the tokenizer gives only tokens that the model has rows for.

A checkpoint's tokenizer may know more tokens than its matrices have rows (a padding token added later): that
is harmless as long as nothing writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flatlm.runtime.errors import SourceError
from flatlm.runtime.text.tokenizer import Tokenizer


def require_rows(tokenizer: Tokenizer, template: str | None, text: Iterable[int], rows: int) -> None:
    """SourceError naming token, id and rows where a token that is written or waited for has none.

    Those are the tokens that the template spells or calls by name, the end tokens, what tokenizer.json adds
    to every text, and the ids of `text`, the calibration's.
    """
    for origin, ids in (
        ("the chat template writes", _of_template(tokenizer, template or "")),
        ("the configuration ends answers with", tokenizer.eos_ids),
        ("tokenizer.json adds to every text", tokenizer.encode("")),
        ("the calibration text gives", text),
    ):
        largest = max(ids, default=0)
        if largest >= rows:
            token = tokenizer.hf.id_to_token(largest)
            known = "which the tokenizer does not know" if token is None else f"{token!r}"
            raise SourceError(
                f"{origin} the token {largest}, {known}, but the model has {rows} rows (0 to {rows - 1}): "
                "tokenizer and weights are not of the same model, or it was not resized for its tokens"
            )


def _of_template(tokenizer: Tokenizer, template: str) -> Iterator[int]:
    """The ids of added tokens that stand in the template, and of the special ones that it calls by name."""
    for number, token in tokenizer.hf.get_added_tokens_decoder().items():
        if token.content and token.content in template:
            yield number
    for name, text in tokenizer.special.items():
        if name in template and (named := tokenizer.hf.token_to_id(text)) is not None:
            yield named
