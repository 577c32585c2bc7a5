"""tokenizer.json, tokenizer_config.json and generation_config.json from a GGUF file's metadata.

Byte-level BPE (`tokenizer.ggml.model` gpt2), which gguf_words knows to cut into words, and SentencePiece
(llama), whose merges gguf_sentencepiece makes of the pieces' scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flatlm.export.sources import gguf_sentencepiece
from flatlm.export.sources.gguf_config import token_id
from flatlm.export.sources.gguf_words import KINDS, Kind, byte_level
from flatlm.export.sources.source import Files, json_bytes
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.settings import Settings

# Values of tokenizer.ggml.token_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5

# Any of these ends a turn, whichever the file names as its eos; llama.cpp stops at them as well.
_END_OF_TURN = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
)

# Control tokens in GGUF, ordinary added tokens in Qwen's own tokenizer.json: printed, not skipped.
_PLAIN = frozenset(
    f"<|{name}|>" for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
)

_PHI3_OLD = ("<unk>", "<s>", "<|endoftext|>")  # which, unlike Phi-3's others, leave blanks after them alone
_SENTENCEPIECE = Kind(words=(), adds_bos=True)
_SAMPLING: dict[str, tuple[str, type]] = {
    "temperature": ("temp", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "repetition_penalty": ("penalty_repeat", float),
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a file, by number, and their types."""

    metadata: Settings
    tokens: list[str]
    types: list[int]

    @classmethod
    def of(cls, metadata: Settings) -> Vocabulary:
        tokens = metadata.each("tokenizer.ggml.tokens", str)
        types = metadata.each("tokenizer.ggml.token_type", int)
        if not tokens or len(types) != len(tokens):
            raise SourceError(
                f"{metadata.place} has {len(tokens)} tokenizer.ggml.tokens and {len(types)} "
                "tokenizer.ggml.token_type: the file is damaged or very old"
            )
        return cls(metadata, tokens, types)

    def special(self, key: str) -> str | None:
        """The token that the file names as bos, eos …"""
        index = token_id(self.metadata, key, len(self.tokens))
        return None if index is None else self.tokens[index]

    def ids(self, *types: int) -> dict[str, int]:
        """Number of each token of these types."""
        both = zip(self.tokens, self.types, strict=True)
        return {token: i for i, (token, kind) in enumerate(both) if kind in types}

    def added(self) -> list[dict[str, Any]]:
        """Of tokenizer.json: tokens that are found in a text before it is cut into words."""
        strip = self.metadata.get("general.architecture", str) == "phi3" and _is_sentencepiece(self.metadata)
        flags = {"single_word": False, "lstrip": False, "normalized": False}
        return [
            {"id": i, "content": token, **flags, "rstrip": strip and token not in _PHI3_OLD}
            | {"special": kind == _CONTROL and token not in _PLAIN}
            for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (_CONTROL, _USER_DEFINED)
        ]


def tokenizer_files(metadata: Settings, context: int) -> Files:
    """The text side of a model, as `Source.files`. `context` in tokens.

    Raises UnsupportedError for tokenizers that are neither BPE nor SentencePiece, or cut in an unknown way.
    """
    model = metadata.need("tokenizer.ggml.model", str)
    pre = metadata.get("tokenizer.ggml.pre", str, "default")
    if not _is_sentencepiece(metadata) and (model != "gpt2" or pre not in KINDS):
        known = f"'llama', 'gemma4', and 'gpt2' with {', '.join(KINDS)}"
        raise UnsupportedError(
            f"{metadata.place}: tokenizer {model!r} with pre-tokenizer {pre!r} cannot be rebuilt "
            f"(known: {known}); export from the model's Hugging Face folder instead"
        )
    kind = _SENTENCEPIECE if _is_sentencepiece(metadata) else KINDS[pre]
    vocabulary = Vocabulary.of(metadata)
    added = vocabulary.added()
    special = {
        f"{name}_token": vocabulary.special(key)
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
        "tokenizer.json": json_bytes(_tokenizer(vocabulary, kind, added), indent=None),
        "tokenizer_config.json": json_bytes(config | ({"chat_template": template} if template else {})),
        "generation_config.json": json_bytes(_generation_config(metadata, len(vocabulary.tokens), added)),
    }
    return files | ({"chat_template.jinja": template.encode()} if template else {})


def _is_sentencepiece(metadata: Settings) -> bool:
    return metadata.get("tokenizer.ggml.model", str) in ("llama", "gemma4")


def _tokenizer(vocabulary: Vocabulary, kind: Kind, added: list[dict[str, Any]]) -> dict[str, Any]:
    """tokenizer.json. Added tokens are in the vocabulary too: it fixes their ids, and no merge makes one."""
    # Unused: rows of the embedding that pad it to a round number.
    vocab = vocabulary.ids(*{*vocabulary.types} - {_UNUSED})
    pipeline = _of_pieces if kind is _SENTENCEPIECE else _of_bytes
    parts, model = pipeline(vocabulary, kind, vocab)
    frame = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    usual: dict[str, Any] = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None}
    usual |= {"end_of_word_suffix": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    post = _begin(vocabulary, kind, vocab)
    return {**frame, **parts, "post_processor": post, "model": {**usual, **model, "vocab": vocab}}


def _of_bytes(
    vocabulary: Vocabulary, kind: Kind, vocab: dict[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Normalizer, pre-tokenizer and decoder; merges and options of the model."""
    metadata = vocabulary.metadata
    merges = [merge.split(" ") for merge in metadata.each("tokenizer.ggml.merges", str)]
    if bad := [pair for pair in merges if len(pair) != 2 or "".join(pair) not in vocab]:
        raise SourceError(
            f"{metadata.place}: {len(bad)} merges make no token of the vocabulary, first {bad[0]}"
        )
    parts = {
        "normalizer": kind.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(kind.words)},
        "decoder": byte_level(use_regex=True),
    }
    return parts, {"ignore_merges": kind.whole, "merges": merges}


def _of_pieces(
    vocabulary: Vocabulary, kind: Kind, vocab: dict[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of a SentencePiece vocabulary."""
    metadata = vocabulary.metadata
    given = metadata.each("tokenizer.ggml.merges", str)  # of Gemma 4, whose merges are not by the scores
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", bool, not given)
    scores = metadata.each("tokenizer.ggml.scores", float)
    if not given and len(scores) != len(vocabulary.tokens):
        raise metadata.wrong("tokenizer.ggml.scores", f"{len(vocabulary.tokens)} numbers, one for each token")
    pieces = vocabulary.ids(_NORMAL, _USER_DEFINED)
    merges = [merge.split(" ") for merge in given] or gguf_sentencepiece.merges(pieces, scores)
    unknown = vocabulary.special("unknown") or next(iter(vocabulary.ids(_UNKNOWN)), None)
    model = {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False}
    return gguf_sentencepiece.pipeline(prefix), model | {"merges": merges}


def _begin(vocabulary: Vocabulary, kind: Kind, vocab: dict[str, int]) -> dict[str, Any] | None:
    """The post-processor that puts the begin token before a text, where there is one and it is asked for."""
    bos = vocabulary.special("bos") if kind.has_bos else None
    asked = vocabulary.metadata.get("tokenizer.ggml.add_bos_token", bool, kind.adds_bos)
    if bos not in vocab or not asked:
        return None
    begin, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [vocab[bos]], "tokens": [bos]}},
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
