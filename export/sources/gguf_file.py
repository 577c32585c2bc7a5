"""A GGUF file as a Hugging Face checkpoint: names, config and weights (dequantized) translated back.

The files are opened in `gguf_reader`, the config is made in `gguf_config`, the tokenizer rebuilt in
`gguf_tokenizer`. Two layouts are undone: GGUF stores shapes innermost first, and `llama` files store the rows
of q and k with rotary pairs side by side instead of in two halves. A tied model has one embedding; where the
file holds it twice, the head's copy, which quantizers keep finer, stands for both.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flatlm.export.config import settings_of, unsupported_features
from flatlm.export.names import HEAD, Names
from flatlm.export.registry import architecture
from flatlm.export.sources.gguf_archs import ARCHITECTURES
from flatlm.export.sources.gguf_config import FREQUENCIES, Facts, token_id
from flatlm.export.sources.gguf_reader import Opened, Stored, open_parts, stem
from flatlm.export.sources.gguf_tensors import dequantize, release, require_byte_order, same_matrix, unpermute
from flatlm.export.sources.gguf_tokenizer import tokenizer_files
from flatlm.export.sources.source import Files, missing_weight, no_default, require_finite
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.settings import Settings

MAGIC = b"GGUF"


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
    gguf: bool = True

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
    """Reads metadata and tokenizer (seconds for a large vocabulary); weights are mapped. What the header
    refuses is refused before the tokenizer is read.

    Raises SourceError (damaged, a part or the gguf package is missing), UnsupportedError (architecture,
    tokenizer, keys that change what is computed).
    """
    opened = open_parts(path)
    metadata, name = opened.metadata, _name(path, opened.metadata)
    for tensor in opened.tensors.values():
        require_byte_order(path.name, tensor)
    read_as = ARCHITECTURES[name]
    if read_as.windowed and f"{name}.attention.sliding_window" in metadata:
        read_as = dataclasses.replace(read_as, model_type=read_as.windowed)
    if read_as.sparse and metadata.get(f"{name}.expert_count", int, 0):
        read_as = read_as.sparse
    known = architecture(read_as.model_type)
    tensors = _renamed(path, opened, known.names)
    embedding = f"{known.names.stored('embedding', gguf=True)}.weight"
    if embedding not in tensors or len(tensors[embedding].shape) != 2:
        raise SourceError(f"{path.name} has no matrix token_embd.weight: it is damaged or no language model")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    turning = FREQUENCIES.keys() & opened.tensors.keys()
    factors = {FREQUENCIES[one]: dequantize(opened.tensors[one]) for one in turning}
    config = Facts(metadata, read_as, known, shapes, factors).config(name)
    settings = settings_of(Settings(config, path.name, SourceError), known)
    if features := unsupported_features(settings, known):
        raise UnsupportedError(f"{path.name} cannot be exported: {'; '.join(features)}")
    config["tie_word_embeddings"] = _tie(tensors, embedding, f"{known.names.stored(HEAD, gguf=True)}.weight")
    for token, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{token}_token_id"] = token_id(metadata, key, shapes[embedding][0])
    heads_of: dict[str, int] = {}
    if read_as.permuted:
        for part, count in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
            ending = known.names.layer[f"attention.{part}"].hf
            heads_of |= {f".{ending}.{kind}": config[known.key(count)] for kind in ("weight", "bias")}
    files = tokenizer_files(metadata, config[known.key("max_position_embeddings")])
    named = metadata.each("tokenizer.chat_templates", str)
    notes = [] if "chat_template.jinja" in files or not named else [no_default(path.name, named)]
    settings = Settings(config, path.name, SourceError)
    return GgufFile(stem(path), path, _digest(opened), settings, files, tensors, heads_of, notes)


def _name(path: Path, metadata: Settings) -> str:
    """The architecture; UnsupportedError for one that is not read, and for what is no model."""
    name = metadata.need("general.architecture", str)
    if name not in ARCHITECTURES:
        (near,) = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0)
        raise UnsupportedError(
            f"{path.name}: architecture {name!r} is not supported; of the {len(ARCHITECTURES)} that flatlm "
            f"reads in GGUF files the nearest by name is {near!r} (flatlm models lists them)"
        )
    if (kind := metadata.get("general.type", str, "model")) != "model":
        raise UnsupportedError(f"{path.name} holds a GGUF {kind!r}, no model: give the model's file")
    return name


def _renamed(path: Path, opened: Opened, names: Names) -> dict[str, Stored]:
    """The tensors by Hugging Face name; UnsupportedError for one that has no place."""
    found = {}
    for name, tensor in opened.tensors.items():
        if name in FREQUENCIES:
            continue
        if (ours := names.of_gguf(name)) is None:
            raise UnsupportedError(f"{path.name}: tensor {name} has no place in the architecture of the file")
        found[ours] = tensor
    return found


def _tie(tensors: dict[str, Stored], embedding: str, head: str) -> bool:
    """Whether the model is tied; a second copy of its matrix then leaves `tensors`, the head's stays."""
    if head not in tensors:
        return True
    tied = same_matrix(tensors[embedding], tensors[head])
    for name in (embedding, head):
        release(tensors[name].data)
    if tied:
        tensors[embedding] = tensors.pop(head)
    return tied


def _digest(opened: Opened) -> str:
    identity = hashlib.sha256()
    for path in opened.paths:
        facts = path.stat()
        identity.update(f"{facts.st_size} {facts.st_mtime_ns}\n".encode())
        with path.open("rb") as file:
            identity.update(file.read(1 << 16))
    return identity.hexdigest()
