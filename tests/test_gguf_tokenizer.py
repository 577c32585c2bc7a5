"""Tokenizers of GGUF files: words as each kind cuts them, and SentencePiece from pieces and scores.

Beside this, all vectors that llama.cpp ships with its vocabularies of command-r, gemma-4, gpt-2, llama-bpe,
llama-spm, phi-3, qwen2, qwen35, refact and starcoder were met once (docs/log/gguf.md).
"""

from __future__ import annotations

import json

import pytest

from flatlm.export.sources.gguf_sentencepiece import merges
from flatlm.export.sources.gguf_tokenizer import tokenizer_files
from flatlm.export.sources.gguf_words import KINDS
from flatlm.runtime.errors import SourceError
from flatlm.runtime.settings import Settings

tokenizers = pytest.importorskip("tokenizers")

TEXT = "He'LL pay12345 camelCase"
WORDS = {
    "gpt-2": ["He", "'", "LL", "Ġpay", "12345", "ĠcamelCase"],
    "smollm": ["He", "'", "LL", "Ġpay", "1", "2", "3", "4", "5", "ĠcamelCase"],
    "llama-bpe": ["He", "'LL", "Ġpay", "123", "45", "ĠcamelCase"],
    "qwen2": ["He", "'LL", "Ġpay", "1", "2", "3", "4", "5", "ĠcamelCase"],
    "gpt-4o": ["He'LL", "Ġpay", "123", "45", "Ġcamel", "Case"],
    "tekken": ["He", "'LL", "Ġpay", "1", "2", "3", "4", "5", "Ġcamel", "Case"],
    "hunyuan-dense": ["He", "'LL", "Ġpay", "123", "45", "ĠcamelCase"],
}


def cut(name: str, text: str) -> list[str]:
    """The words of a kind, bytes as characters."""
    words = {"type": "Sequence", "pretokenizers": list(KINDS[name].words)}
    made = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": words}
    cutter = tokenizers.Tokenizer.from_str(json.dumps(made)).pre_tokenizer
    return [word for word, _ in cutter.pre_tokenize_str(text)]


@pytest.mark.parametrize(("name", "expected"), WORDS.items(), ids=WORDS)
def test_words_are_cut_as_the_kind_says(name, expected):
    assert cut(name, TEXT) == expected


@pytest.mark.parametrize("name", KINDS)
def test_no_kind_loses_a_character(name):
    text = "Über 1234 Bäume;  naïve\n\n 日本語 🙂 e\u0301 \t x"
    decoded = tokenizers.decoders.ByteLevel().decode(cut(name, text))
    assert decoded == text


# A vocabulary of SentencePiece: control tokens, bytes, then pieces; better scores are joined first.
PIECES = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab", "<|user|>"]
SCORES = [0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0, -4.0, 0.0]
TYPES = [2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 1, 4]


def pieces(**changes: object) -> Settings:
    return Settings(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": PIECES,
            "tokenizer.ggml.scores": SCORES,
            "tokenizer.ggml.token_type": TYPES,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            **changes,
        },
        "tiny.gguf",
        SourceError,
    )


def encoded(metadata: Settings, text: str) -> list[str]:
    made = tokenizers.Tokenizer.from_buffer(tokenizer_files(metadata, 64)["tokenizer.json"])
    found = made.encode(text)
    assert made.decode(found.ids) == text
    return [PIECES[number] for number in found.ids]


def test_pieces_are_joined_by_their_scores():
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}
    assert merges(vocabulary, [0, 0, 0, -2.0, -1.0]) == [["b", "c"], ["a", "b"]]
    assert encoded(pieces(), "abc") == ["<s>", "▁ab", "c"]


def test_what_no_piece_spells_is_spelled_in_bytes():
    assert encoded(pieces(), "a\nb") == ["<s>", "▁a", "<0x0A>", "b"]


def test_a_text_begins_as_after_a_blank_unless_the_file_says_otherwise():
    without = {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    assert encoded(pieces(**without), "ab c") == ["ab", "▁", "c"]


def test_merges_of_the_file_come_before_the_scores():
    given = {"tokenizer.ggml.merges": ["b c"], "tokenizer.ggml.model": "gemma4"}
    assert encoded(pieces(**given), "abc") == ["<s>", "a", "bc"]


def test_scores_that_are_too_few_are_an_error_that_names_them():
    with pytest.raises(SourceError, match=r"tokenizer\.ggml\.scores.*expected 13 numbers"):
        tokenizer_files(pieces(**{"tokenizer.ggml.scores": [0.0]}), 64)


def test_tokens_of_phi3_take_the_blanks_after_them():
    metadata = pieces(**{"general.architecture": "phi3"})
    added = json.loads(tokenizer_files(metadata, 64)["tokenizer.json"])["added_tokens"]
    assert {token["content"]: token["rstrip"] for token in added} == {
        "<s>": False,
        "</s>": True,
        "<|user|>": True,
    }
