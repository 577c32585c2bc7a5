"""A Hugging Face model folder: config.json, safetensors (one file or shards), tokenizer files.

The safetensors format is read here, in numpy alone (it has no bfloat16, safetensors' numpy interface
therefore neither):

    8 bytes          little-endian length N of the header
    N bytes          JSON {name: {"dtype", "shape", "data_offsets": [begin, end)}, "__metadata__": …}
    the rest         the tensors, offsets counted from here, row-major, little-endian
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flatlm.export.sources.source import Files, chat_template, json_bytes, missing_weight, read_json
from flatlm.runtime.errors import SourceError, UnsupportedError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_HEADER_LIMIT = 100 << 20  # bytes; the limit of the safetensors library itself


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: `offset` bytes into `file`."""

    file: Path
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class HfFolder:
    """A `Source`. Each read maps the file anew, so a read weight's pages don't stay in memory."""

    name: str
    path: Path
    digest: str
    config: Mapping[str, Any]
    files: Files
    tensors: Mapping[str, Place]

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._place(name).shape

    def read(self, name: str) -> np.ndarray:
        place = self._place(name)
        count = math.prod(place.shape)
        if not count:
            return np.zeros(place.shape, np.float32)
        stored = np.memmap(place.file, DTYPES[place.dtype], "r", place.offset, (count,))
        return decode(stored, place.dtype).reshape(place.shape)

    def _place(self, name: str) -> Place:
        if name not in self.tensors:
            raise missing_weight(self.name, name)
        return self.tensors[name]


def open_hf_folder(folder: Path, name: str | None = None) -> HfFolder:
    """Reads the headers and the small files of a model folder.

    Raises SourceError for missing or damaged files, UnsupportedError for stored quantization and dtypes.
    """
    name = name or folder.resolve().name
    if not (folder / "config.json").is_file():
        hint = f"; did you mean {ggufs[0]}?" if (ggufs := sorted(folder.glob("*.gguf"))) else ""
        raise SourceError(f"{folder} has no config.json, so it is no Hugging Face model folder{hint}")
    config = read_json(folder / "config.json")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "unknown")
        raise UnsupportedError(
            f"{name} is already quantized (quantization_config, method {method}); "
            "flatlm starts from fp32, fp16 or bf16 weights: give the original checkpoint"
        )
    shards = find_shards(folder)
    tensors: dict[str, Place] = {}
    for shard in shards:
        tensors |= read_header(shard)
    return HfFolder(name, folder, _digest(config, shards), config, _small_files(folder, config), tensors)


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a model, from its index or the single file."""
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise SourceError(f"{folder / INDEX} names {outside[0]!r}, which is not a file of the folder")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            what = (
                f"{len(missing)} of {len(names)} shards are missing, first {missing[0]}"
                if names
                else "it is empty"
            )
            raise SourceError(f"{folder / INDEX}: {what}; fetch the model again")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if pickles := sorted(folder.glob("*.bin")):
        raise UnsupportedError(
            f"{folder} holds weights as pickle ({pickles[0].name}), which can run code and is not read; "
            "convert them to safetensors (transformers: save_pretrained)"
        )
    raise SourceError(f"{folder} has neither {SINGLE} nor {INDEX}: the weights are missing")


def read_header(path: Path) -> dict[str, Place]:
    """Where each tensor of a safetensors file lies; everything is checked against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise SourceError(
                f"{path} is truncated or no safetensors file (header of {length} in {size} bytes)"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise SourceError(
                f"{path}: the safetensors header is damaged ({error}); fetch the file again"
            ) from error
    header.pop("__metadata__", None)
    return {name: _place(path, name, entry, 8 + length, size) for name, entry in header.items()}


def _place(path: Path, name: str, entry: Mapping[str, Any], start: int, size: int) -> Place:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in DTYPES:
        raise UnsupportedError(f"{path}: {name} is stored as {dtype}; flatlm reads {', '.join(DTYPES)}")
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize or begin < 0:
        raise SourceError(f"{path}: {name} has shape {list(shape)} {dtype} but {end - begin} bytes")
    if start + end > size:
        raise SourceError(f"{path} is truncated: {name} ends at byte {start + end}, the file at {size}")
    return Place(path, dtype, shape, start + begin)


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Stored elements → fresh float32. A bfloat16 is the upper half of a float32."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def _small_files(folder: Path, config: Mapping[str, Any]) -> Files:
    if not (folder / "tokenizer.json").is_file():
        raise SourceError(
            f"{folder} has no tokenizer.json; write one with transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    files: dict[str, bytes | Path] = {"tokenizer.json": folder / "tokenizer.json"}
    tokenizer_config = folder / "tokenizer_config.json"
    files["tokenizer_config.json"] = tokenizer_config if tokenizer_config.is_file() else json_bytes({})
    generation = folder / "generation_config.json"
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    files["generation_config.json"] = generation if generation.is_file() else json_bytes(ids)
    if (folder / "chat_template.jinja").is_file():
        files["chat_template.jinja"] = folder / "chat_template.jinja"
    elif tokenizer_config.is_file() and (template := chat_template(read_json(tokenizer_config))):
        files["chat_template.jinja"] = template.encode()
    return files


def _digest(config: Mapping[str, Any], shards: list[Path]) -> str:
    identity = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for shard in shards:
        facts = shard.stat()
        identity.update(f"{shard.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        with shard.open("rb") as file:
            identity.update(file.read(1 << 16))
    return identity.hexdigest()
