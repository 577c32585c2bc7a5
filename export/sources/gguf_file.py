"""A GGUF file as a Hugging Face checkpoint: names, config and weights (dequantized) translated back.

The files are opened in `gguf_reader`, the config is made in `gguf_config`, the tokenizer rebuilt in
`gguf_tokenizer`. Two layouts are undone: GGUF stores shapes innermost first, and `llama` files store the rows
of q and k with rotary pairs side by side instead of in two halves. A tied model has one embedding; where the
file holds it twice, the head's copy, which quantizers keep finer, stands for both.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flatlm.export.names import HEAD, NAMES
from flatlm.export.sources.gguf_config import config_of, token_id
from flatlm.export.sources.gguf_reader import Opened, Stored, open_parts, stem
from flatlm.export.sources.gguf_tensors import dequantize, release, require_byte_order, same_matrix, unpermute
from flatlm.export.sources.gguf_tokenizer import tokenizer_files
from flatlm.export.sources.source import Files, missing_weight, no_default, require_finite
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.settings import Settings

MAGIC = b"GGUF"
ARCHITECTURES = ("llama", "qwen2")

_EMBEDDING, _HEAD = (f"{NAMES.of(place).hf}.weight" for place in ("embedding", HEAD))
_FACTORS = "rope_freqs.weight"  # [d/2]: the frequencies' divisors, llama3 scaling already worked out


@dataclass(frozen=True)
class GgufFile:
    """A `Source`. `tensors` are by Hugging Face name; their data are mapped."""

    name: str
    path: Path
    digest: str
    config: Settings
    files: Files
    tensors: Mapping[str, Stored] = field(repr=False)
    heads_of: Mapping[str, int] = field(repr=False)  # weights to un-permute → their number of heads
    notes: Sequence[str] = ()

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).shape

    def read(self, name: str) -> np.ndarray:
        tensor = self._tensor(name)
        values = dequantize(tensor)
        release(tensor.data)
        require_finite(values, name, self.config.place)
        heads = next((n for ending, n in self.heads_of.items() if name.endswith(ending)), 0)
        return unpermute(values, heads) if heads else values

    def renamed(self, ours: Mapping[str, str]) -> GgufFile:
        tensors = {ours.get(name, name): place for name, place in self.tensors.items()}
        return dataclasses.replace(self, tensors=tensors)

    def same(self, one: str, other: str) -> bool:
        return same_matrix(self._tensor(one), self._tensor(other))

    def _tensor(self, name: str) -> Stored:
        if name not in self.tensors:
            raise missing_weight(self.name, name)
        return self.tensors[name]


def open_gguf(path: Path) -> GgufFile:
    """Reads metadata and tokenizer (seconds for a large vocabulary); weights are mapped.

    Raises SourceError (damaged, a part or the gguf package is missing), UnsupportedError (architecture,
    tokenizer, keys that change what is computed).
    """
    opened = open_parts(path)
    metadata = opened.metadata
    architecture = metadata.need("general.architecture", str)
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedError(
            f"{path.name}: architecture {architecture!r} is not supported; flatlm reads {known}"
        )
    if (kind := metadata.get("general.type", str, "model")) != "model":
        raise UnsupportedError(f"{path.name} holds a GGUF {kind!r}, no model: give the model's file")
    for tensor in opened.tensors.values():
        require_byte_order(path.name, tensor)
    tensors = {_hf_name(path, name): one for name, one in opened.tensors.items() if name != _FACTORS}
    tied = _tie(path, tensors)
    rows = tensors[_EMBEDDING].shape[0]
    config = config_of(metadata, architecture, tensors, rows) | {"tie_word_embeddings": tied}
    if _FACTORS in opened.tensors:
        factors = dequantize(opened.tensors[_FACTORS]).tolist()
        config["rope_scaling"] = {"rope_type": "frequency_factors", "factors": factors}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{name}_token_id"] = token_id(metadata, key, rows)
    heads_of: dict[str, int] = {}
    if architecture == "llama":
        for part, count in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
            name = NAMES.layer[f"attention.{part}"].hf
            heads_of |= {f".{name}.{kind}": config[count] for kind in ("weight", "bias")}
    files = tokenizer_files(metadata, config["max_position_embeddings"])
    named = metadata.each("tokenizer.chat_templates", str)
    notes = [] if "chat_template.jinja" in files or not named else [no_default(path.name, named)]
    settings = Settings(config, path.name, SourceError)
    return GgufFile(stem(path), path, _digest(opened), settings, files, tensors, heads_of, notes)


def _tie(path: Path, tensors: dict[str, Stored]) -> bool:
    """Whether the model is tied; a second copy of its matrix then leaves `tensors`, the head's stays."""
    if _EMBEDDING not in tensors or len(tensors[_EMBEDDING].shape) != 2:
        raise SourceError(f"{path.name} has no matrix token_embd.weight: it is damaged or no language model")
    if _HEAD not in tensors:
        return True
    tied = same_matrix(tensors[_EMBEDDING], tensors[_HEAD])
    for name in (_EMBEDDING, _HEAD):
        release(tensors[name].data)
    if tied:
        tensors[_EMBEDDING] = tensors.pop(_HEAD)
    return tied


def _hf_name(path: Path, name: str) -> str:
    if found := NAMES.of_gguf(name):
        return found
    raise UnsupportedError(f"{path.name}: tensor {name} has no place in the architectures flatlm knows")


def _digest(opened: Opened) -> str:
    identity = hashlib.sha256()
    for path in opened.paths:
        facts = path.stat()
        identity.update(f"{facts.st_size} {facts.st_mtime_ns}\n".encode())
        with path.open("rb") as file:
            identity.update(file.read(1 << 16))
    return identity.hexdigest()
