"""A Hugging Face model folder: config.json, safetensors (one file or shards), tokenizer files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flatlm.export.sources.mxfp4 import METHOD, Mxfp4, joined
from flatlm.export.sources.safetensors_file import Place, decode, read_header, require_readable
from flatlm.export.sources.small_files import small_files
from flatlm.export.sources.source import (
    Files,
    is_ignored,
    missing_weight,
    require_finite,
)
from flatlm.runtime import settings
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.settings import Settings

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_COMPARED = 1 << 22  # elements at once, so that two heads of a large vocabulary need no memory


@dataclass(frozen=True)
class HfFolder:
    """A `Source`. Each read maps the file anew, so a read weight's pages don't stay in memory."""

    name: str
    path: Path
    digest: str
    config: Settings
    files: Files
    tensors: Mapping[str, Place | Mxfp4]
    notes: Sequence[str] = ()
    gguf: bool = False

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._place(name).shape

    def read(self, name: str) -> np.ndarray:
        place = self._place(name)
        values = decode(place.stored(), place.dtype)
        require_finite(values, name, str(place.file))
        return values

    def renamed(self, ours: Mapping[str, str]) -> HfFolder:
        tensors = {ours.get(name, name): place for name, place in self.tensors.items()}
        return dataclasses.replace(self, tensors=tensors)

    def same(self, one: str, other: str) -> bool:
        a, b = self._place(one), self._place(other)
        if a.shape != b.shape or not math.prod(a.shape):
            return a.shape == b.shape
        left, right = a.stored().reshape(-1), b.stored().reshape(-1)
        return all(
            np.array_equal(
                decode(left[i : i + _COMPARED], a.dtype), decode(right[i : i + _COMPARED], b.dtype)
            )
            for i in range(0, len(left), _COMPARED)
        )

    def _place(self, name: str) -> Place | Mxfp4:
        if name not in self.tensors:
            raise missing_weight(self.name, name)
        require_readable(name, self.tensors[name])
        return self.tensors[name]


def open_hf_folder(folder: Path, name: str | None = None) -> HfFolder:
    """Reads the headers and the small files of a model folder.

    Raises SourceError for missing or damaged files, UnsupportedError for stored quantization.
    """
    name = name or folder.resolve().name
    if not (folder / "config.json").is_file():
        hint = f"; did you mean {ggufs[0]}?" if (ggufs := sorted(folder.glob("*.gguf"))) else ""
        raise SourceError(f"{folder} has no config.json, so it is no Hugging Face model folder{hint}")
    config = settings.read(folder / "config.json", SourceError)
    quantization = config.values.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if quantization and method != METHOD:
        raise UnsupportedError(
            f"{name} is already quantized (quantization_config, method {method or 'unknown'!s:.40}); "
            "flatlm starts from fp32, fp16 or bf16 weights: give the original checkpoint"
        )
    tensors = joined(_tensors(folder))
    for weight, place in tensors.items():
        if not is_ignored(weight):
            require_readable(weight, place)
    shards = sorted({place.file for place in tensors.values()})
    files, notes = small_files(folder, config)
    return HfFolder(name, folder, _digest(config, shards), config, files, tensors, notes)


def _tensors(folder: Path) -> dict[str, Place]:
    """Where each weight lies. As in transformers, a single file comes before shards and their index."""
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _sharded(folder)
    if pickles := sorted(folder.glob("*.bin")):
        raise UnsupportedError(
            f"{folder} holds weights as pickle ({pickles[0].name}), which can run code and is not read; "
            "convert them to safetensors (transformers: save_pretrained)"
        )
    raise SourceError(f"{folder} has neither {SINGLE} nor {INDEX}: the weights are missing")


def _sharded(folder: Path) -> dict[str, Place]:
    """The tensors of all shards, each from the shard that the index names for it.

    What stands in one shard alone and not in the index counts too, as in transformers.
    """
    index = folder / INDEX
    weight_map = settings.read(index, SourceError).table("weight_map")
    place_of = {name: weight_map.need(name, str) for name in weight_map}
    files = sorted(set(place_of.values()))
    if outside := [file for file in files if Path(file).name != file or "\0" in file]:
        raise SourceError(f"{index} names {outside[0]!r}, which is not a file of the folder")
    missing = [file for file in files if not os.path.isfile(folder / file)]
    if missing or not files:
        what = (
            f"{len(missing)} of {len(files)} shards are missing, first {missing[0]}"
            if files
            else "it is empty"
        )
        raise SourceError(f"{index}: {what}; fetch the model again")
    headers = {file: read_header(folder / file) for file in files}
    if absent := [name for name, file in place_of.items() if name not in headers[file]]:
        raise SourceError(
            f"{index} places {absent[0]} in {place_of[absent[0]]}, which does not hold it "
            f"({len(absent)} such weights): index and shards are not of the same model; fetch it again"
        )
    tensors = {name: headers[file][name] for name, file in place_of.items()}
    for file, header in headers.items():
        for name, place in header.items():
            if tensors.setdefault(name, place) is not place and name not in place_of:
                raise SourceError(
                    f"{index} does not list {name}, which both {tensors[name].file.name} and {file} hold; "
                    "fetch the model again"
                )
    return tensors


def _digest(config: Settings, shards: list[Path]) -> str:
    identity = hashlib.sha256(json.dumps(config.values, sort_keys=True).encode())
    for shard in shards:
        facts = shard.stat()
        identity.update(f"{shard.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        with shard.open("rb") as file:
            identity.update(file.read(1 << 16))
    return identity.hexdigest()
