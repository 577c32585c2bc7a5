"""How text is cut into words before the merges, by the name that a GGUF file has for it (tokenizer.ggml.pre).

The file holds the name alone; these are the pre-tokenizers of the checkpoints' own tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def byte_level(use_regex: bool) -> dict[str, Any]:
    """Bytes as characters; with GPT-2's own cut into words."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _words(*patterns: str) -> tuple[dict[str, Any], ...]:
    return (*map(_split, patterns), byte_level(use_regex=False))


def _like_llama3(digits: str, letters: str = r"\p{L}", others: str = r"\p{L}\p{N}") -> str:
    return rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|\p{{N}}{digits}| ?[^\s{others}]+[\r\n]*{_REST}"


def _like_gpt4o(endings: str, digits: str) -> str:
    upper, lower = _CASED
    start = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{start}{upper}*{lower}+{endings}|{start}{upper}+{lower}*{endings}|\p{{N}}{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_REST}"
    )


@dataclass(frozen=True, slots=True)
class Kind:
    """What a `tokenizer.ggml.pre` stands for.

    words: the pre-tokenizers, in order
    has_bos: Qwen's tokenizer has no bos token, though its GGUF names one
    adds_bos: where the file does not say whether texts begin with it
    whole: a word that is a token needs no merges
    """

    words: tuple[dict[str, Any], ...]
    normalizer: dict[str, Any] | None = None
    has_bos: bool = True
    adds_bos: bool = False
    whole: bool = False


_NFC = {"type": "NFC"}
_DIGITS = ({"type": "Digits", "individual_digits": True}, byte_level(use_regex=True))
_GPT2 = Kind(words=(byte_level(use_regex=True),))
_LLAMA3 = Kind(_words(_like_llama3("{1,3}")), adds_bos=True, whole=True)
_SMAUG = Kind(_words(_like_llama3("{1,3}")))
_QWEN2 = Kind(_words(_like_llama3("")), _NFC, has_bos=False)
_HUNYUAN = Kind(
    _words(
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*{_REST}",
    )
)
KINDS: Mapping[str, Kind] = {
    "bloom": Kind(_words(r" ?[^(\s|.,!?…。，、।۔،)]+")),
    "command-r": Kind(words=_DIGITS, normalizer=_NFC, adds_bos=True),
    "dbrx": _SMAUG,
    "deepseek-r1-qwen": Kind(_words(_like_llama3("")), _NFC, adds_bos=True),
    "exaone": Kind(words=_DIGITS, normalizer=_NFC),
    "exaone4": _GPT2,
    "falcon-h1": _LLAMA3,
    "falcon3": _LLAMA3,
    "glm4": Kind(_words(_like_llama3("{1,3}")), whole=True),
    "gpt-2": _GPT2,
    "gpt-4o": Kind(_words(_like_gpt4o(f"{_ENDINGS}?", "{1,3}"))),
    "granite-docling": _GPT2,
    "hunyuan-dense": _HUNYUAN,
    "lfm2": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "olmo": _GPT2,
    "phi-2": _GPT2,
    "qwen2": _QWEN2,
    "qwen35": Kind(
        _words(_like_llama3("", letters=r"[\p{L}\p{M}]", others=r"\p{L}\p{M}\p{N}")), has_bos=False
    ),
    "refact": Kind(words=_DIGITS),
    "seed-coder": Kind(
        _words(rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+{_REST}")
    ),
    "smaug-bpe": _SMAUG,
    "smollm": Kind(words=_DIGITS),
    "stablelm2": Kind(_words(_like_llama3("")), _NFC),
    "starcoder": Kind(words=_DIGITS),
    "tekken": Kind(_words(_like_gpt4o("", "")), adds_bos=True, whole=True),
}
