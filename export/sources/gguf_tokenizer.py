"""tokenizer.json, tokenizer_config.json and generation_config.json from a GGUF file's metadata.

Byte-level BPE only (`tokenizer.ggml.model` gpt2). How text is cut into words before the merges is not in
the file, only its name is: KINDS holds what each name stands for in the checkpoints' own tokenizer.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flatlm.export.sources.gguf_config import token_id
from flatlm.export.sources.source import Files, json_bytes
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.settings import Settings

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # values of tokenizer.ggml.token_type

# Any of these ends a turn, whichever the file names as its eos; llama.cpp stops at them as well.
_END_OF_TURN = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>")

# Control tokens in GGUF, ordinary added tokens in Qwen's own tokenizer.json: printed, not skipped.
_PLAIN = frozenset(
    f"<|{name}|>" for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
)

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a `tokenizer.ggml.pre` stands for."""

    words: tuple[dict[str, Any], ...]  # the pre-tokenizers, in order
    normalizer: dict[str, Any] | None = None
    has_bos: bool = True  # Qwen's tokenizer has no bos token, though its GGUF names one


KINDS = {
    "smollm": Kind(words=({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True))),
    "qwen2": Kind(
        words=(
            {"type": "Split", "pattern": {"Regex": _QWEN2_WORDS}, "behavior": "Isolated", "invert": False},
            _byte_level(use_regex=False),
        ),
        normalizer={"type": "NFC"},
        has_bos=False,
    ),
}


_SAMPLING: dict[str, tuple[str, type]] = {
    "temperature": ("temp", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "repetition_penalty": ("penalty_repeat", float),
}


def tokenizer_files(metadata: Settings, context: int) -> Files:
    """The text side of a model, as `Source.files`. `context` in tokens.

    Raises UnsupportedError for tokenizers that are not byte-level BPE or are cut in an unknown way.
    """
    model = metadata.need("tokenizer.ggml.model", str)
    pre = metadata.get("tokenizer.ggml.pre", str, "default")
    if model != "gpt2" or pre not in KINDS:
        raise UnsupportedError(
            f"{metadata.place}: tokenizer {model!r} with pre-tokenizer {pre!r} cannot be rebuilt "
            f"(known: 'gpt2' with {', '.join(KINDS)}); export from the model's Hugging Face folder instead"
        )
    kind = KINDS[pre]
    tokens = metadata.each("tokenizer.ggml.tokens", str)
    types = metadata.each("tokenizer.ggml.token_type", int)
    if not tokens or len(types) != len(tokens):
        raise SourceError(
            f"{metadata.place} has {len(tokens)} tokenizer.ggml.tokens and {len(types)} "
            "tokenizer.ggml.token_type: the file is damaged or very old"
        )
    added = _added_tokens(tokens, types)
    special = {
        f"{name}_token": _token(metadata, tokens, key)
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    if not kind.has_bos:
        special["bos_token"] = None
    config = {
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        },
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it stands
        **special,
    }
    template = metadata.get("tokenizer.chat_template", str)  # of several the one called default
    files = {
        "tokenizer.json": json_bytes(_tokenizer(metadata, kind, tokens, types, added), indent=None),
        "tokenizer_config.json": json_bytes(config | ({"chat_template": template} if template else {})),
        "generation_config.json": json_bytes(_generation_config(metadata, len(tokens), added)),
    }
    return files | ({"chat_template.jinja": template.encode()} if template else {})


def _token(metadata: Settings, tokens: list[str], key: str) -> str | None:
    index = token_id(metadata, key, len(tokens))
    return None if index is None else tokens[index]


def _added_tokens(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": token, **flags, "special": kind == _CONTROL and token not in _PLAIN}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _tokenizer(
    metadata: Settings, kind: Kind, tokens: list[str], types: list[int], added: list[dict[str, Any]]
) -> dict[str, Any]:
    """tokenizer.json. Added tokens are in the vocabulary too: it fixes their ids, and no merge makes one."""
    # Unused: rows of the embedding that pad it to a round number.
    vocab = {token: i for i, (token, type_) in enumerate(zip(tokens, types, strict=True)) if type_ != _UNUSED}
    merges = [merge.split(" ") for merge in metadata.each("tokenizer.ggml.merges", str)]
    if bad := [pair for pair in merges if len(pair) != 2 or "".join(pair) not in vocab]:
        raise SourceError(
            f"{metadata.place}: {len(bad)} merges make no token of the vocabulary, first {bad[0]}"
        )
    post = None
    bos = _token(metadata, tokens, "bos") if kind.has_bos else None
    if bos in vocab and metadata.get("tokenizer.ggml.add_bos_token", bool, False):
        begin, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        post = {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [vocab[bos]], "tokens": [bos]}},
        }
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
    }
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": kind.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(kind.words)},
        "post_processor": post,
        "decoder": _byte_level(use_regex=True),
        "model": model | {"vocab": vocab, "merges": merges},
    }


def _generation_config(metadata: Settings, count: int, added: list[dict[str, Any]]) -> dict[str, Any]:
    ids = {key: token_id(metadata, key, count) for key in ("bos", "eos", "eot", "eom", "padding")}
    ends = [
        ids["eos"],
        ids["eot"],
        ids["eom"],
        *(token["id"] for token in added if token["content"] in _END_OF_TURN),
    ]
    return {
        "bos_token_id": ids["bos"],
        "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None)),
        "pad_token_id": ids["padding"],
        **_sampling(metadata),
    }


def _sampling(metadata: Settings) -> dict[str, Any]:
    """What the file says of sampling, in transformers' words; newer converters write it."""
    found = {name: metadata.get(f"general.sampling.{key}", kind) for name, (key, kind) in _SAMPLING.items()}
    given: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    return {"do_sample": True, **given} if given else {}
