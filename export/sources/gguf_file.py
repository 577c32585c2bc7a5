"""A GGUF file as a Hugging Face checkpoint: names, config and weights (dequantized) translated back.

The tokenizer is rebuilt in `gguf_tokenizer`. Two layouts are undone: GGUF stores shapes innermost first,
and `llama` files store the rows of q and k with rotary pairs side by side instead of in two halves.
A tied model has one embedding; where the file holds it twice, the head's copy, which quantizers keep
finer, stands for both.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flatlm.export.parallel import each
from flatlm.export.sources.gguf_tokenizer import Metadata, tokenizer_files
from flatlm.export.sources.source import Files, missing_weight
from flatlm.runtime.errors import SourceError, UnsupportedError

MAGIC = b"GGUF"
ARCHITECTURES = ("llama", "qwen2")
_ROWS = 256  # rows dequantized at once: the library's intermediate arrays stay small, all cores busy

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FACTORS = "rope_freqs.weight"  # [d/2]: the frequencies' divisors, llama3 scaling already worked out


@dataclass(frozen=True)
class GgufFile:
    """A `Source`. `tensors` are the gguf package's, by Hugging Face name; their data are mapped."""

    name: str
    path: Path
    digest: str
    config: Mapping[str, Any]
    files: Files
    tensors: Mapping[str, Any] = field(repr=False)
    heads_of: Mapping[str, int] = field(repr=False)  # weights to un-permute → their number of heads

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return _shape(self._tensor(name))

    def read(self, name: str) -> np.ndarray:
        tensor = self._tensor(name)
        values = dequantize(tensor)
        _release(tensor.data)
        heads = next((n for ending, n in self.heads_of.items() if name.endswith(ending)), 0)
        return unpermute(values, heads) if heads else values

    def _tensor(self, name: str) -> Any:
        if name not in self.tensors:
            raise missing_weight(self.name, name)
        return self.tensors[name]


def open_gguf(path: Path) -> GgufFile:
    """Reads metadata and tokenizer (seconds for a large vocabulary); weights are mapped.

    Raises SourceError (damaged, or the gguf package is missing), UnsupportedError (architecture, tokenizer).
    """
    reader = _reader(path)
    metadata = Metadata(path.name, {key: entry.contents for key, entry in reader.fields.items()})
    architecture = metadata.need("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedError(
            f"{path.name}: architecture {architecture!r} is not supported; flatlm reads {known}"
        )
    stored = {tensor.name: tensor for tensor in reader.tensors}
    tensors = {_hf_name(path, name): tensor for name, tensor in stored.items() if name != _FACTORS}
    tied = "lm_head.weight" not in tensors or _same_matrix(
        stored["token_embd.weight"], stored["output.weight"]
    )
    if tied and "lm_head.weight" in tensors:
        tensors["model.embed_tokens.weight"] = tensors.pop("lm_head.weight")
    config = _config(metadata, architecture, tensors, tied)
    if _FACTORS in stored:
        factors = dequantize(stored[_FACTORS]).tolist()
        config["rope_scaling"] = {"rope_type": "frequency_factors", "factors": factors}
    heads_of: dict[str, int] = {}
    if architecture == "llama":
        for part, count in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            heads_of |= {f".{part}.{kind}": config[count] for kind in ("weight", "bias")}
    files = tokenizer_files(metadata, config["max_position_embeddings"])
    return GgufFile(path.stem, path, _digest(path), config, files, tensors, heads_of)


def _reader(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise SourceError(
            f"reading {path.name} needs the package gguf: pip install 'flatlm[export]'"
        ) from error
    try:
        return GGUFReader(str(path))
    except (ValueError, IndexError, KeyError, OSError) as error:  # what the library raises on cut files
        raise SourceError(f"{path} is truncated or damaged ({error}); fetch it again") from error


def _release(stored: np.ndarray) -> None:
    """The pages of the mapped file leave this process's memory; the system keeps them while it has room."""
    base: Any = stored
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _hf_name(path: Path, name: str) -> str:
    stem, _, kind = name.rpartition(".")
    block, _, rest = stem.partition(".")
    if block == "blk":
        index, _, part = rest.partition(".")
        if part in _LAYER:
            return f"model.layers.{index}.{_LAYER[part]}.{kind}"
    elif stem in _OUTER:
        return f"{_OUTER[stem]}.{kind}"
    raise UnsupportedError(f"{path.name}: tensor {name} has no place in the architectures flatlm knows")


def dequantize(tensor: Any, rows: slice = slice(None)) -> np.ndarray:
    """(rows of) a tensor as fresh float32."""
    from gguf.quants import dequantize as convert

    shape = _shape(tensor)
    try:
        if len(shape) == 1:
            return np.array(convert(tensor.data, tensor.tensor_type), np.float32).reshape(shape)
        data = tensor.data.reshape(shape[0], -1)[rows]
        out = np.empty((len(data), *shape[1:]), np.float32)

        def part(at: int) -> None:
            out[at : at + _ROWS] = convert(data[at : at + _ROWS], tensor.tensor_type)

        each(part, range(0, len(data), _ROWS))
        return out
    except NotImplementedError as error:
        kind = tensor.tensor_type.name
        raise UnsupportedError(
            f"{tensor.name} is stored as {kind}, which the gguf package cannot dequantize"
        ) from error


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from rotary pairs side by side (0, d/2, 1, d/2 + 1, …) to two halves."""
    return rows.reshape(heads, len(rows) // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _same_matrix(embedding: Any, head: Any) -> bool:
    """Whether two matrices are one up to quantization: 64 rows spread over the vocabulary tell.

    The difference between two quantizations of one matrix is a few to 30 per cent of its norm (2 bits);
    of two unrelated ones, over 100.
    """
    if _shape(embedding) != _shape(head):
        return False
    sample = slice(None, None, max(1, _shape(head)[0] // 64))
    a, b = dequantize(embedding, sample), dequantize(head, sample)
    return bool(np.linalg.norm(a - b) < 0.5 * np.linalg.norm(b))


def _config(metadata: Metadata, architecture: str, tensors: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """config.json from the metadata. What flatlm cannot do is put in too, for build_graph to refuse."""

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        # Stored as float32: give back the decimal that was meant, 1e-05 and not 9.99999974e-06.
        return float(f"{value:.7g}") if isinstance(value, float) else value

    def need(key: str) -> Any:
        metadata.need(f"{architecture}.{key}")
        return get(key)

    heads, hidden, context = need("attention.head_count"), need("embedding_length"), need("context_length")
    head_size = get("attention.key_length", hidden // heads)
    config = {
        "model_type": architecture,
        "hidden_size": hidden,
        "intermediate_size": need("feed_forward_length"),
        "num_hidden_layers": need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": head_size,
        "partial_rotary_factor": get("rope.dimension_count", head_size) / head_size,
        "max_position_embeddings": context,
        "vocab_size": _shape(tensors["model.embed_tokens.weight"])[0],
        "rms_norm_eps": need("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", 10000.0),
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in tensors,
        "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in tensors,
        "num_experts": get("expert_count", 0),
    }
    if (scaling := get("rope.scaling.type", "none")) != "none":
        config["rope_scaling"] = {"rope_type": scaling, "factor": get("rope.scaling.factor", 1.0)}
    if window := get("attention.sliding_window", 0):
        config |= {"use_sliding_window": True, "sliding_window": window}
    for key in ("bos", "eos", "padding"):
        name = {"padding": "pad"}.get(key, key)
        config[f"{name}_token_id"] = metadata.get(f"tokenizer.ggml.{key}_token_id")
    return config


def _digest(path: Path) -> str:
    facts = path.stat()
    identity = hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns}\n".encode())
    with path.open("rb") as file:
        identity.update(file.read(1 << 16))
    return identity.hexdigest()
