"""A single token as bytes: what it adds to a text, also where it is only part of a character."""

from __future__ import annotations

import functools
import re

from flatlm.runtime.text.tokenizer import REPLACEMENT, Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a byte of SentencePiece


def piece_of(tokenizer: Tokenizer, number: int) -> bytes:
    """The bytes of the token `number`; none for an id that the vocabulary does not have."""
    token = tokenizer.hf.id_to_token(number)
    if token is None:
        return b""
    if found := _BYTE.fullmatch(token):
        return bytes([int(found[1], 16)])
    text = tokenizer.decode([number], skip_special=False)
    if REPLACEMENT in text and all(character in byte_alphabet() for character in token):
        return bytes(byte_alphabet()[character] for character in token)
    return text.encode()


@functools.lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: those that print are themselves, others follow from U+0100."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    found = {chr(byte): byte for byte in printed}
    return found | {chr(0x100 + place): byte for place, byte in enumerate(others)}
