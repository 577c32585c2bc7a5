"""Tiny random models as Hugging Face folders, so that tests need no download: numpy and tokenizers alone.

folder = tiny_model(tmp_path / "m", architecture="qwen2", vocab_size=301)
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "A small model answers a small question with a small sentence.",
    "for i in range(10):\n    print(i, i * i)",
    "Über 1234 Bäume wachsen dort; naïve café, 日本語, 🙂.",
)
_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class TinyShape:
    """Odd on purpose: no size is a multiple of 16, k none of 32, 3 heads share a key/value head."""

    architecture: str = "llama"
    vocab_size: int = 301  # at least 259: bytes and special tokens
    hidden_size: int = 60
    intermediate_size: int = 84
    layers: int = 2
    heads: int = 3
    kv_heads: int = 1
    head_size: int = 20
    context_length: int = 128
    tied: bool = True
    attention_bias: bool = False  # llama only; qwen2 always has q, k, v biases
    mlp_bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    outliers: int = 0  # channels of every norm that are 20 times the others, as in real models
    config: Mapping[str, Any] = field(default_factory=dict)  # more of config.json
    dtype: str = "float32"  # float32, float16, bfloat16
    shards: int = 1
    seed: int = 0


def tiny_model(folder: Path, **shape: Any) -> Path:
    """Writes a random model of `TinyShape(**shape)` into `folder`; returns the folder."""
    s = TinyShape(**shape)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", tiny_config(s))
    _write_weights(folder, tiny_weights(s), s)
    write_tokenizer(folder, s.vocab_size, s.context_length)
    return folder


def tiny_config(s: TinyShape) -> dict[str, Any]:
    config = {
        "architectures": [f"{s.architecture.capitalize()}ForCausalLM"],
        "model_type": s.architecture,
        "vocab_size": s.vocab_size,
        "hidden_size": s.hidden_size,
        "intermediate_size": s.intermediate_size,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_size,
        "max_position_embeddings": s.context_length,
        "rms_norm_eps": 1e-5,
        "rope_theta": s.rope_theta,
        "rope_scaling": s.rope_scaling,
        "tie_word_embeddings": s.tied,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": s.dtype,
    }
    if s.architecture == "llama":
        config |= {"attention_bias": s.attention_bias, "mlp_bias": s.mlp_bias}
    return config | dict(s.config)


def tiny_weights(s: TinyShape) -> dict[str, np.ndarray]:
    """Hugging Face name → float32, scaled so that activations and logits stay near one."""
    rng = np.random.default_rng(s.seed)

    def matrix(n: int, k: int) -> np.ndarray:
        return (rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32)

    def norm() -> np.ndarray:
        weight = 1 + 0.1 * rng.standard_normal(s.hidden_size)
        weight[rng.choice(s.hidden_size, s.outliers, replace=False)] *= 20
        return weight.astype(np.float32)

    q, kv = s.heads * s.head_size, s.kv_heads * s.head_size
    qkv_bias = s.architecture == "qwen2" or s.attention_bias
    weights = {"model.embed_tokens.weight": matrix(s.vocab_size, s.hidden_size) * 4}
    for i in range(s.layers):
        linears = {
            "self_attn.q_proj": (q, s.hidden_size, qkv_bias),
            "self_attn.k_proj": (kv, s.hidden_size, qkv_bias),
            "self_attn.v_proj": (kv, s.hidden_size, qkv_bias),
            "self_attn.o_proj": (s.hidden_size, q, s.attention_bias),
            "mlp.gate_proj": (s.intermediate_size, s.hidden_size, s.mlp_bias),
            "mlp.up_proj": (s.intermediate_size, s.hidden_size, s.mlp_bias),
            "mlp.down_proj": (s.hidden_size, s.intermediate_size, s.mlp_bias),
        }
        for name, (n, k, bias) in linears.items():
            weights[f"model.layers.{i}.{name}.weight"] = matrix(n, k)
            if bias:
                weights[f"model.layers.{i}.{name}.bias"] = matrix(1, n)[0]
        weights[f"model.layers.{i}.input_layernorm.weight"] = norm()
        weights[f"model.layers.{i}.post_attention_layernorm.weight"] = norm()
        for part in ("q_norm", "k_norm") if s.architecture == "qwen3" else ():
            weight = 1 + 0.3 * rng.standard_normal(s.head_size)
            weights[f"model.layers.{i}.self_attn.{part}.weight"] = weight.astype(np.float32)
    weights["model.norm.weight"] = norm()
    if not s.tied:
        weights["lm_head.weight"] = matrix(s.vocab_size, s.hidden_size) * 4
    return weights


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "float32") -> None:
    """By hand, because safetensors' numpy interface cannot store bfloat16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, at = [], 0
    for name, array in tensors.items():
        blobs.append(_stored_bytes(array, dtype))
        end = at + len(blobs[-1])
        header[name] = {"dtype": _STORED[dtype], "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def _stored_bytes(array: np.ndarray, dtype: str) -> bytes:
    if dtype == "bfloat16":  # the upper half, rounded to nearest even
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return array.astype(np.dtype(dtype).newbyteorder("<")).tobytes()


def _write_weights(folder: Path, weights: dict[str, np.ndarray], s: TinyShape) -> None:
    if s.shards == 1:
        write_safetensors(folder / "model.safetensors", weights, s.dtype)
        return
    weight_map = {}
    for i in range(s.shards):
        file = f"model-{i + 1:05d}-of-{s.shards:05d}.safetensors"
        part = dict(list(weights.items())[i :: s.shards])
        write_safetensors(folder / file, part, s.dtype)
        weight_map |= dict.fromkeys(part, file)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_tokenizer(folder: Path, vocab_size: int, context_length: int) -> None:
    """tokenizer.json and the files beside it, of a few words and all bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 256 + len(SPECIAL):
        raise ValueError(
            f"vocab_size {vocab_size} is below the {256 + len(SPECIAL)} of bytes and special tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[2],
        "unk_token": SPECIAL[0],
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
        **names,
    }
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    ids = {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 2}
    _write_json(folder / "generation_config.json", ids)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
