"""Tiny random checkpoints of every model type, as the hub has them: names and shapes on disk, config.json.

folder = tiny(tmp_path / "m", "phi3", sliding_window=5)

Every parameter is random, norms and biases too. What tests/spec computes of such a checkpoint is what
transformers does; the export is compared with that.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny_models import write_safetensors, write_tokenizer

Shapes = dict[str, tuple[int, ...]]

# Odd on purpose, as tiny_models.TinyShape: few sizes are multiples of 16.
BASE: dict[str, Any] = {
    "vocab_size": 301,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def tiny(folder: Path, model_type: str, **changes: Any) -> Path:
    """Writes a random checkpoint of the type into `folder`; `changes` are keys of its config.json."""
    config = tiny_config(model_type, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tiny_weights(config))
    write_tokenizer(folder, config["vocab_size"], BASE["max_position_embeddings"])
    return folder


def tiny_config(model_type: str, **changes: Any) -> dict[str, Any]:
    own = USUAL.get(model_type, {})
    others = OTHER_NAMES.get(model_type, {})
    base = {others.get(key, key): value for key, value in BASE.items() if others.get(key, key)}
    return {"model_type": model_type, **base, **own, **changes}


def tiny_weights(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Name on disk → float32; activations and logits stay near one."""
    rng = np.random.default_rng(zlib.crc32(config["model_type"].encode()))
    shapes = SHAPES[config["model_type"]](config)
    return {name: _random(rng, name, shape) for name, shape in shapes.items()}


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(rng.standard_normal(shape))
    if name.endswith((".beta", ".eps")):  # of xIELU
        return np.float32(0.5 if name.endswith(".beta") else -1e-6).reshape(())
    if len(shape) > 1:
        values *= 1 if any(word in name for word in ("embed", "wte")) else shape[-1] ** -0.5
    elif "norm" in name or "ln_" in name:
        values = 1 + 0.3 * values
    else:
        values *= 0.3
    return values.astype(np.float32)


def linear(name: str, n: int, k: int, bias: bool = False) -> Shapes:
    return {f"{name}.weight": (n, k), **({f"{name}.bias": (n,)} if bias else {})}


def attention(
    c: Mapping[str, Any], at: str, bias: str = "", names: str = "q_proj k_proj v_proj o_proj"
) -> Shapes:
    """`bias`: letters of those of q, k, v and o that have one."""
    d = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    q, kv, hidden = c["num_attention_heads"] * d, c["num_key_value_heads"] * d, c["hidden_size"]
    sizes = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
    shapes: Shapes = {}
    for (part, (n, k)), name in zip(sizes.items(), names.split(), strict=True):
        shapes |= linear(f"{at}.{name}", n, k, part in bias)
    return shapes


def gated(c: Mapping[str, Any], at: str, bias: bool = False) -> Shapes:
    wide, hidden = c["intermediate_size"], c["hidden_size"]
    return (
        linear(f"{at}.gate_proj", wide, hidden, bias)
        | linear(f"{at}.up_proj", wide, hidden, bias)
        | linear(f"{at}.down_proj", hidden, wide, bias)
    )


def norms(c: Mapping[str, Any], at: str, *names: str) -> Shapes:
    return {f"{at}.{name}.weight": (c["hidden_size"],) for name in names}


def whole(c: Mapping[str, Any], layer: Callable[[str], Shapes]) -> Shapes:
    """Embedding, layers, last norm and head under Llama's names."""
    table = (c["vocab_size"], c["hidden_size"])
    shapes: Shapes = {"model.embed_tokens.weight": table}
    for i in range(c["num_hidden_layers"]):
        shapes |= layer(f"model.layers.{i}")
    shapes |= norms(c, "model", "norm")
    return shapes | ({} if c["tie_word_embeddings"] else {"lm_head.weight": table})


def llama(c: Mapping[str, Any]) -> Shapes:
    """The biases are those that each model type's config asks for."""
    kind = c["model_type"]
    both = c.get("attention_bias") or c.get("use_bias")
    bias = {
        "qwen2": "qkv",
        "helium": "qkv" if c.get("attention_bias") else "",
        "seed_oss": ("qkv" if c.get("attention_bias", True) else "")
        + "o" * c.get("attention_out_bias", False),
        "internlm3": "qkv" * c.get("qkv_bias", False) + "o" * c.get("bias", False),
    }.get(kind, "qkvo" if both else "")
    mlp_bias = bool(c.get("mlp_bias") or c.get("use_bias") or c.get("bias"))

    def layer(at: str) -> Shapes:
        shapes = attention(c, f"{at}.self_attn", bias) | gated(c, f"{at}.mlp", mlp_bias)
        if kind == "qwen3":
            shapes |= {f"{at}.self_attn.{part}_norm.weight": (c["head_dim"],) for part in "qk"}
        return shapes | norms(c, at, "input_layernorm", "post_attention_layernorm")

    return whole(c, layer)


def phi3(c: Mapping[str, Any]) -> Shapes:
    hidden, wide, h, g = (
        c[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )

    def layer(at: str) -> Shapes:
        return {
            f"{at}.self_attn.qkv_proj.weight": ((h + 2 * g) * hidden // h, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, hidden),
            f"{at}.mlp.gate_up_proj.weight": (2 * wide, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, wide),
        } | norms(c, at, "input_layernorm", "post_attention_layernorm")

    return whole(c, layer)


def granitemoehybrid(c: Mapping[str, Any]) -> Shapes:
    hidden, wide = c["hidden_size"], c["shared_intermediate_size"]

    def layer(at: str) -> Shapes:
        recurs = c["layer_types"][int(at.rpartition(".")[2])] in ("mamba", "linear_attention")
        biased = "qkvo" * c.get("attention_bias", False)
        mixer = mamba(c, f"{at}.mamba") if recurs else attention(c, f"{at}.self_attn", biased)
        sparse, count = f"{at}.block_sparse_moe", c["num_local_experts"]
        stacked = {
            f"{sparse}.router.layer.weight": (count, hidden),
            f"{sparse}.input_linear.weight": (count, 2 * c["intermediate_size"], hidden),
            f"{sparse}.output_linear.weight": (count, hidden, c["intermediate_size"]),
        }
        return {
            **mixer,
            **(stacked if count else {}),
            f"{at}.shared_mlp.input_linear.weight": (2 * wide, hidden),
            f"{at}.shared_mlp.output_linear.weight": (hidden, wide),
        } | norms(c, at, "input_layernorm", "post_attention_layernorm")

    return whole(c, layer)


def exaone(c: Mapping[str, Any]) -> Shapes:
    hidden, wide = c["hidden_size"], c["intermediate_size"]
    table = (c["vocab_size"], hidden)
    shapes: Shapes = {"transformer.wte.weight": table}
    for i in range(c["num_layers"]):
        at = f"transformer.h.{i}"
        shapes |= attention(c, f"{at}.attn.attention", names="q_proj k_proj v_proj out_proj")
        shapes |= norms(c, at, "ln_1", "ln_2")
        shapes |= linear(f"{at}.mlp.c_fc_0", wide, hidden) | linear(f"{at}.mlp.c_fc_1", wide, hidden)
        shapes |= linear(f"{at}.mlp.c_proj", hidden, wide)
    return shapes | norms(c, "transformer", "ln_f") | {"lm_head.weight": table}


def experts(
    c: Mapping[str, Any], at: str, count: int, wide: int, names: str = "gate_proj up_proj down_proj"
) -> Shapes:
    """Each stored by itself."""
    gate, up, down = names.split()
    shapes: Shapes = {}
    for e in range(count):
        for name in (gate, up):
            shapes |= linear(f"{at}.{e}.{name}", wide, c["hidden_size"])
        shapes |= linear(f"{at}.{e}.{down}", c["hidden_size"], wide)
    return shapes


def qwen_moe(c: Mapping[str, Any]) -> Shapes:
    """Qwen2's, Qwen3's and OLMoE's experts."""
    kind, hidden = c["model_type"], c["hidden_size"]
    size = c.get("head_dim") or hidden // c["num_attention_heads"]
    wide = c.get("moe_intermediate_size", c["intermediate_size"])

    def layer(at: str) -> Shapes:
        shapes = attention(c, f"{at}.self_attn", "qkv" if kind == "qwen2_moe" else "")
        for part, heads in (("q", c["num_attention_heads"]), ("k", c["num_key_value_heads"])):
            if kind != "qwen2_moe":
                normed = size if kind == "qwen3_moe" else heads * size
                shapes |= {f"{at}.self_attn.{part}_norm.weight": (normed,)}
        shapes |= qwen_mlp(c, at, wide)
        return shapes | norms(c, at, "input_layernorm", "post_attention_layernorm")

    return whole(c, layer)


def qwen_mlp(c: Mapping[str, Any], at: str, wide: int) -> Shapes:
    """Of a layer: experts, and one that is shared, or none of them."""
    if "num_experts" not in c or int(at.rpartition(".")[2]) in c.get("mlp_only_layers", ()):
        return gated(c, f"{at}.mlp")
    shapes = linear(f"{at}.mlp.gate", c["num_experts"], c["hidden_size"])
    if c.get("whole"):  # all experts are stored as one
        shapes |= {f"{at}.mlp.experts.gate_up_proj": (c["num_experts"], 2 * wide, c["hidden_size"])}
        shapes |= {f"{at}.mlp.experts.down_proj": (c["num_experts"], c["hidden_size"], wide)}
    else:
        shapes |= experts(c, f"{at}.mlp.experts", c["num_experts"], wide)
    if shared := c.get("shared_expert_intermediate_size"):
        shapes |= gated({**c, "intermediate_size": shared}, f"{at}.mlp.shared_expert")
        shapes |= linear(f"{at}.mlp.shared_expert_gate", 1, c["hidden_size"])
    return shapes


def sandwiched(c: Mapping[str, Any]) -> Shapes:
    """Norms before, after or around the branches, and of heads, as each model type has them."""
    kind, hidden = c["model_type"], c["hidden_size"]
    d = c.get("head_dim") or hidden // c["num_attention_heads"]
    q, k = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    bias = {"glm4": "qkv"}.get(kind, "qkvo") * c.get("attention_bias", kind == "glm4")
    heads = {"olmo2": (q, k), "olmo3": (q, k), "exaone4": (d, d), "gemma3_text": (d, d)}.get(kind, ())
    after = ("post_attention_layernorm", "post_feedforward_layernorm")
    glm = ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")
    around = {"glm4": glm, "olmo2": after, "olmo3": after, "exaone4": after}
    gemma = ("input_layernorm", "post_attention_layernorm")
    if kind != "gemma":
        gemma += ("pre_feedforward_layernorm", "post_feedforward_layernorm")

    def layer(at: str) -> Shapes:
        shapes = attention(c, f"{at}.self_attn", bias) | norms(c, at, *around.get(kind, gemma))
        for part, width in zip("qk", heads, strict=False):
            shapes |= {f"{at}.self_attn.{part}_norm.weight": (width,)}
        if kind != "glm4":
            return shapes | gated(c, f"{at}.mlp")
        shapes |= linear(f"{at}.mlp.gate_up_proj", 2 * c["intermediate_size"], hidden)
        return shapes | linear(f"{at}.mlp.down_proj", hidden, c["intermediate_size"])

    return whole(c, layer)


def hunyuan(c: Mapping[str, Any]) -> Shapes:
    names = [f"{part}_layernorm.weight" for part in ("query", "key")]

    def layer(at: str) -> Shapes:
        shapes = attention(c, f"{at}.self_attn", "qkvo" * c.get("attention_bias", False))
        shapes |= {f"{at}.self_attn.{name}": (c["head_dim"],) for name in names}
        return shapes | gated(c, f"{at}.mlp") | norms(c, at, "input_layernorm", "post_attention_layernorm")

    return whole(c, layer)


def plain(c: Mapping[str, Any]) -> Shapes:
    """MLPs without a gate."""
    hidden, wide, kind = c["hidden_size"], c["intermediate_size"], c["model_type"]
    up, down = ("fc1", "fc2") if kind == "nanochat" else ("up_proj", "down_proj")
    bias = c.get("mlp_bias", False)

    def layer(at: str) -> Shapes:
        shapes = attention(c, f"{at}.self_attn", "qkvo" * c.get("attention_bias", False))
        shapes |= linear(f"{at}.mlp.{up}", wide, hidden, bias)
        shapes |= linear(f"{at}.mlp.{down}", hidden, wide, bias)
        if kind != "nanochat":
            shapes |= norms(c, at, "input_layernorm", "post_attention_layernorm")
        return shapes

    shapes = whole(c, layer)
    return {
        name: shape for name, shape in shapes.items() if kind != "nanochat" or name != "model.norm.weight"
    }


def layer_norms(c: Mapping[str, Any], at: str, *names: str, bias: bool = True) -> Shapes:
    found: Shapes = {}
    for name in names:
        found |= linear(f"{at}.{name}", c["hidden_size"], 1, bias)
    return {name: shape[:1] for name, shape in found.items()}


def phi(c: Mapping[str, Any]) -> Shapes:
    hidden, wide = c["hidden_size"], c["intermediate_size"]

    def layer(at: str) -> Shapes:
        shapes = attention(c, f"{at}.self_attn", "qkvo", "q_proj k_proj v_proj dense")
        shapes |= linear(f"{at}.mlp.fc1", wide, hidden, True) | linear(f"{at}.mlp.fc2", hidden, wide, True)
        return shapes | layer_norms(c, at, "input_layernorm")

    shapes = whole(c, layer)
    del shapes["model.norm.weight"]
    return shapes | layer_norms(c, "model", "final_layernorm") | {"lm_head.bias": (c["vocab_size"],)}


def gpt2(c: Mapping[str, Any]) -> Shapes:
    hidden, at = c["n_embd"], "transformer"
    shapes: Shapes = {f"{at}.wte.weight": (c["vocab_size"], hidden)}
    shapes |= {f"{at}.wpe.weight": (c["n_positions"], hidden)}
    wide = c.get("n_inner") or 4 * hidden
    c = {**c, "hidden_size": hidden}
    for i in range(c["n_layer"]):
        h = f"{at}.h.{i}"
        sizes = {"attn.c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden)}
        sizes |= {"mlp.c_fc": (hidden, wide), "mlp.c_proj": (wide, hidden)}
        for name, (k, n) in sizes.items():
            shapes |= {f"{h}.{name}.weight": (k, n), f"{h}.{name}.bias": (n,)}
        shapes |= layer_norms(c, h, "ln_1", "ln_2")
    return shapes | layer_norms(c, at, "ln_f")


def opt(c: Mapping[str, Any]) -> Shapes:
    hidden, wide, at = c["hidden_size"], c["ffn_dim"], "model.decoder"
    shapes: Shapes = {f"{at}.embed_tokens.weight": (c["vocab_size"], hidden)}
    shapes |= {f"{at}.embed_positions.weight": (c["max_position_embeddings"] + 2, hidden)}
    c = {**c, "num_key_value_heads": c["num_attention_heads"]}
    for i in range(c["num_hidden_layers"]):
        h = f"{at}.layers.{i}"
        shapes |= attention(c, f"{h}.self_attn", "qkvo", "q_proj k_proj v_proj out_proj")
        shapes |= linear(f"{h}.fc1", wide, hidden, True) | linear(f"{h}.fc2", hidden, wide, True)
        shapes |= layer_norms(c, h, "self_attn_layer_norm", "final_layer_norm")
    return shapes | layer_norms(c, at, "final_layer_norm")


def by_head(c: Mapping[str, Any]) -> Shapes:
    """GPT-NeoX and BLOOM: rows of q, k and v of one head after those of another."""
    bloom = c["model_type"] == "bloom"
    hidden, root = c["hidden_size"], "transformer" if bloom else "gpt_neox"
    wide = 4 * hidden if bloom else c["intermediate_size"]
    mixer, embedding = ("self_attention", "word_embeddings") if bloom else ("attention", "embed_in")
    table = (c["vocab_size"], hidden)
    shapes: Shapes = {f"{root}.{embedding}.weight": table}
    for i in range(c["n_layer"] if bloom else c["num_hidden_layers"]):
        at = f"{root}.{'h' if bloom else 'layers'}.{i}"
        shapes |= linear(f"{at}.{mixer}.query_key_value", 3 * hidden, hidden, True)
        shapes |= linear(f"{at}.{mixer}.dense", hidden, hidden, True)
        shapes |= linear(f"{at}.mlp.dense_h_to_4h", wide, hidden, True)
        shapes |= linear(f"{at}.mlp.dense_4h_to_h", hidden, wide, True)
        shapes |= layer_norms(c, at, "input_layernorm", "post_attention_layernorm")
    if bloom:
        return shapes | layer_norms(c, root, "word_embeddings_layernorm", "ln_f")
    return shapes | layer_norms(c, root, "final_layer_norm") | {"embed_out.weight": table}


def stablelm(c: Mapping[str, Any]) -> Shapes:
    heads = {"q": c["num_attention_heads"], "k": c["num_key_value_heads"]}
    size = c["hidden_size"] // heads["q"]

    def layer(at: str) -> Shapes:
        shapes = attention(c, f"{at}.self_attn", "qkv" * c["use_qkv_bias"]) | gated(c, f"{at}.mlp")
        for part, number in heads.items() if c["qk_layernorm"] else ():
            norm = f"{at}.self_attn.{part}_layernorm.norms"
            shapes |= {f"{norm}.{head}.weight": (size,) for head in range(number)}
        both = ("input_layernorm", "post_attention_layernorm")
        return shapes | layer_norms(c, at, *both[: 1 if c["use_parallel_residual"] else 2])

    shapes = whole(c, layer)
    return shapes | layer_norms(c, "model", "norm")


def centered(c: Mapping[str, Any]) -> Shapes:
    """StarCoder2, Nemotron and Command R7B."""
    kind, hidden, wide = c["model_type"], c["hidden_size"], c["intermediate_size"]
    up, down = ("c_fc", "c_proj") if kind == "starcoder2" else ("up_proj", "down_proj")
    bias = kind == "starcoder2" and c["use_bias"]
    names = ("input_layernorm", "post_attention_layernorm")

    def layer(at: str) -> Shapes:
        shapes = attention(c, f"{at}.self_attn", "qkvo" * bool(bias or c.get("attention_bias")))
        if kind == "cohere2":
            return shapes | gated(c, f"{at}.mlp") | norms(c, at, names[0])
        shapes |= linear(f"{at}.mlp.{up}", wide, hidden, bias)
        shapes |= linear(f"{at}.mlp.{down}", hidden, wide, bias)
        return shapes | layer_norms(c, at, *names)

    shapes = whole(c, layer)
    return shapes | ({} if kind == "cohere2" else layer_norms(c, "model", "norm"))


def granite_swa(c: Mapping[str, Any]) -> Shapes:
    shapes = llama(c)
    for i in range(c["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.self_attn.sinks": (c["num_attention_heads"],)}
    return shapes


def apertus(c: Mapping[str, Any]) -> Shapes:
    hidden, wide = c["hidden_size"], c["intermediate_size"]
    size = hidden // c["num_attention_heads"]

    def layer(at: str) -> Shapes:
        shapes = attention(c, f"{at}.self_attn") | norms(
            c, at, "attention_layernorm", "feedforward_layernorm"
        )
        shapes |= {f"{at}.self_attn.{part}_norm.weight": (size,) for part in "qk"}
        shapes |= linear(f"{at}.mlp.up_proj", wide, hidden) | linear(f"{at}.mlp.down_proj", hidden, wide)
        shapes |= {f"{at}.mlp.act_fn.{name}": (1,) for name in ("alpha_p", "alpha_n")}
        return shapes | {f"{at}.mlp.act_fn.{name}": () for name in ("beta", "eps")}

    return whole(c, layer)


def mamba(c: Mapping[str, Any], at: str) -> Shapes:
    h, hidden, keys = c["mamba_n_heads"], c["hidden_size"], c["mamba_n_groups"] * c["mamba_d_state"]
    inner = h * c["mamba_d_head"]
    per_head = {f"{at}.{name}": (h,) for name in ("A_log", "dt_bias", "D")}
    bias, channels = c.get("mamba_proj_bias", False), inner + 2 * keys
    return {
        **per_head,
        **linear(f"{at}.in_proj", channels + inner + h, hidden, bias),
        **linear(f"{at}.out_proj", hidden, inner, bias),
        f"{at}.conv1d.weight": (channels, 1, c.get("mamba_d_conv", 4)),
        **({f"{at}.conv1d.bias": (channels,)} if c.get("mamba_conv_bias", True) else {}),
        **({f"{at}.norm.weight": (inner,)} if c.get("mamba_rms_norm", True) else {}),
    }


def falcon_h1(c: Mapping[str, Any]) -> Shapes:
    def layer(at: str) -> Shapes:
        shapes = attention(c, f"{at}.self_attn") | mamba(c, f"{at}.mamba") | gated(c, f"{at}.feed_forward")
        return shapes | norms(c, at, "input_layernorm", "pre_ff_layernorm")

    shapes = whole(c, layer)
    return {name.replace("model.norm.", "model.final_layernorm."): shape for name, shape in shapes.items()}


def lfm2(c: Mapping[str, Any]) -> Shapes:
    hidden, wide, d = c["hidden_size"], c["mlp_rows"], c["hidden_size"] // c["num_attention_heads"]
    bias = c.get("conv_bias", False)

    def layer(at: str) -> Shapes:
        if c["layer_types"][int(at.rpartition(".")[2])] == "conv":
            shapes = linear(f"{at}.conv.in_proj", 3 * hidden, hidden, bias)
            shapes |= linear(f"{at}.conv.out_proj", hidden, hidden, bias)
            shapes |= {f"{at}.conv.conv.weight": (hidden, 1, c.get("conv_L_cache", 3))}
            shapes |= {f"{at}.conv.conv.bias": (hidden,)} if bias else {}
        else:
            shapes = attention(c, f"{at}.self_attn", names="q_proj k_proj v_proj out_proj")
            shapes |= {f"{at}.self_attn.{part}_layernorm.weight": (d,) for part in "qk"}
        for name, n, k in (("w1", wide, hidden), ("w3", wide, hidden), ("w2", hidden, wide)):
            shapes |= linear(f"{at}.feed_forward.{name}", n, k)
        return shapes | norms(c, at, "operator_norm", "ffn_norm")

    shapes = whole(c, layer)
    return {name.replace("model.norm.", "model.embedding_norm."): shape for name, shape in shapes.items()}


def lfm3(c: Mapping[str, Any]) -> Shapes:
    """LFM2's mixers, with gates of heads and norms after them."""
    hidden, wide, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    sandwich = ("post_operator_norm", "post_ffn_norm") if c.get("use_sandwich_norm", True) else ()

    def layer(at: str) -> Shapes:
        if c["layer_types"][int(at.rpartition(".")[2])] == "conv":
            shapes = linear(f"{at}.conv.in_proj", 3 * hidden, hidden)
            shapes |= linear(f"{at}.conv.out_proj", hidden, hidden)
            shapes |= {f"{at}.conv.conv.weight": (hidden, 1, 7)}
        else:
            shapes = attention(c, f"{at}.self_attn")
            shapes |= {f"{at}.self_attn.{part}_norm.weight": (c["head_dim"],) for part in "qk"}
            if c.get("use_attention_gate", True):
                shapes |= linear(f"{at}.self_attn.gate_proj", heads, hidden)
        for name, n, k in (("w1", wide, hidden), ("w3", wide, hidden), ("w2", hidden, wide)):
            shapes |= linear(f"{at}.feed_forward.{name}", n, k)
        return shapes | norms(c, at, "operator_norm", "ffn_norm", *sandwich)

    shapes = whole(c, layer)
    return {name.replace("model.norm.", "model.embedding_norm."): shape for name, shape in shapes.items()}


def qwen3_5(c: Mapping[str, Any]) -> Shapes:
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    hk, hv, dk, dv = (
        c[f"linear_{k}"] for k in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
    )

    def layer(at: str) -> Shapes:
        if c["layer_types"][int(at.rpartition(".")[2])] == "linear_attention":
            here, channels = f"{at}.linear_attn", 2 * hk * dk + hv * dv
            rows = {"in_proj_qkv": channels, "in_proj_z": hv * dv, "in_proj_b": hv, "in_proj_a": hv}
            if c["model_type"] == "qwen3_next":
                rows = {"in_proj_qkvz": channels + hv * dv, "in_proj_ba": 2 * hv}
            shapes: Shapes = {f"{here}.{name}.weight": (n, hidden) for name, n in rows.items()}
            shapes |= {f"{here}.conv1d.weight": (channels, 1, 4), f"{here}.norm.weight": (dv,)}
            shapes |= {f"{here}.A_log": (hv,), f"{here}.dt_bias": (hv,)}
            shapes |= linear(f"{here}.out_proj", hidden, hv * dv)
        else:
            shapes = attention(c, f"{at}.self_attn")
            shapes |= linear(f"{at}.self_attn.q_proj", 2 * heads * c["head_dim"], hidden)
            shapes |= {f"{at}.self_attn.{part}_norm.weight": (c["head_dim"],) for part in "qk"}
        shapes |= qwen_mlp(c, at, c.get("moe_intermediate_size", 0))
        return shapes | norms(c, at, "input_layernorm", "post_attention_layernorm")

    return whole(c, layer)


def nemotron_h(c: Mapping[str, Any]) -> Shapes:
    hidden, wide = c["hidden_size"], c["intermediate_size"]
    usual = {key.replace("ssm_state_size", "mamba_d_state"): value for key, value in c.items()}
    usual |= {"mamba_n_heads": c["mamba_num_heads"], "mamba_d_head": c["mamba_head_dim"]}
    usual |= {"mamba_n_groups": c["n_groups"]}

    def layer(at: str) -> Shapes:
        mixer, kind = f"{at}.mixer", c["layers_block_type"][int(at.rpartition(".")[2])]
        made = {
            "linear_attention": lambda: mamba(usual, mixer),
            "full_attention": lambda: attention(c, mixer),
            "mlp": lambda: (
                linear(f"{mixer}.up_proj", wide, hidden) | linear(f"{mixer}.down_proj", hidden, wide)
            ),
        }
        return made[kind]() | norms(c, at, "norm")

    renamed = {"model.": "backbone.", "embed_tokens": "embeddings", "backbone.norm.": "backbone.norm_f."}
    shapes = whole(c, layer)
    for old, new in renamed.items():
        shapes = {name.replace(old, new): shape for name, shape in shapes.items()}
    return shapes


def mixtral(c: Mapping[str, Any]) -> Shapes:
    def layer(at: str) -> Shapes:
        sparse, count = f"{at}.block_sparse_moe", c["num_local_experts"]
        return {
            **attention(c, f"{at}.self_attn"),
            **linear(f"{sparse}.gate", count, c["hidden_size"]),
            **experts(c, f"{sparse}.experts", count, c["intermediate_size"], "w1 w3 w2"),
        } | norms(c, at, "input_layernorm", "post_attention_layernorm")

    return whole(c, layer)


def granitemoe(c: Mapping[str, Any]) -> Shapes:
    hidden, wide, count = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]

    def layer(at: str) -> Shapes:
        sparse = f"{at}.block_sparse_moe"
        return {
            **attention(c, f"{at}.self_attn"),
            f"{sparse}.router.layer.weight": (count, hidden),
            f"{sparse}.input_linear.weight": (count, 2 * wide, hidden),
            f"{sparse}.output_linear.weight": (count, hidden, wide),
        } | norms(c, at, "input_layernorm", "post_attention_layernorm")

    return whole(c, layer)


def lfm2_moe(c: Mapping[str, Any]) -> Shapes:
    hidden, size = c["hidden_size"], c["hidden_size"] // c["num_attention_heads"]

    def layer(at: str) -> Shapes:
        number, mlp = int(at.rpartition(".")[2]), f"{at}.feed_forward"
        shapes = norms(c, at, "operator_norm", "ffn_norm")
        if c["layer_types"][number] == "conv":
            shapes |= linear(f"{at}.conv.in_proj", 3 * hidden, hidden)
            shapes |= {f"{at}.conv.conv.weight": (hidden, 1, 3)} | linear(
                f"{at}.conv.out_proj", hidden, hidden
            )
        else:
            shapes |= attention(c, f"{at}.self_attn", names="q_proj k_proj v_proj out_proj")
            shapes |= {f"{at}.self_attn.{part}_layernorm.weight": (size,) for part in "qk"}
        if number < c["num_dense_layers"]:
            wide = c["intermediate_size"]
            shapes |= linear(f"{mlp}.w1", wide, hidden) | linear(f"{mlp}.w3", wide, hidden)
            return shapes | linear(f"{mlp}.w2", hidden, wide)
        shapes |= linear(f"{mlp}.gate", c["num_experts"], hidden)
        if c.get("use_expert_bias", True):
            shapes |= {f"{mlp}.expert_bias": (c["num_experts"],)}
        return shapes | experts(c, f"{mlp}.experts", c["num_experts"], c["moe_intermediate_size"], "w1 w3 w2")

    shapes = whole(c, layer)
    return {name.replace("model.norm", "model.embedding_norm"): shape for name, shape in shapes.items()}


def ernie4_5_moe(c: Mapping[str, Any]) -> Shapes:
    count, wide = c["moe_num_experts"], c["moe_intermediate_size"]

    def layer(at: str) -> Shapes:
        shapes = attention(c, f"{at}.self_attn") | norms(c, at, "input_layernorm", "post_attention_layernorm")
        if int(at.rpartition(".")[2]) < c["moe_layer_start_index"]:
            return shapes | gated(c, f"{at}.mlp")
        shapes |= linear(f"{at}.mlp.gate", count, c["hidden_size"])
        shapes |= {f"{at}.mlp.moe_statics.e_score_correction_bias": (1, count)}
        if shared := c["moe_num_shared_experts"]:
            shapes |= gated({**c, "intermediate_size": wide * shared}, f"{at}.mlp.shared_experts")
        return shapes | experts(c, f"{at}.mlp.experts", count, wide)

    return whole(c, layer)


def gpt_oss(c: Mapping[str, Any]) -> Shapes:
    hidden, wide, count = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]

    def layer(at: str) -> Shapes:
        here = f"{at}.mlp.experts"
        return {
            **attention(c, f"{at}.self_attn", "qkvo"),
            f"{at}.self_attn.sinks": (c["num_attention_heads"],),
            **linear(f"{at}.mlp.router", count, hidden, True),
            f"{here}.gate_up_proj": (count, hidden, 2 * wide),
            f"{here}.gate_up_proj_bias": (count, 2 * wide),
            f"{here}.down_proj": (count, wide, hidden),
            f"{here}.down_proj_bias": (count, hidden),
        } | norms(c, at, "input_layernorm", "post_attention_layernorm")

    return whole(c, layer)


QWEN_MOE = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "norm_topk_prob": True,
}
MULTIPLIERS = {
    "embedding_multiplier": 6.0,
    "logits_scaling": 4.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
}
LAYER_NORM = {"layer_norm_eps": 1e-5}
GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 20, "sliding_window": 5}
FALCON_FACTORS = ("embedding", "lm_head", "key", "attention_in", "attention_out", "ssm_in", "ssm_out")
# Keys of BASE by what a model type calls them; "": it has none.
_GPT = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "rms_norm_eps": "layer_norm_epsilon",
    "num_key_value_heads": "",
    "intermediate_size": "",
    "rope_theta": "",
}
OTHER_NAMES: Mapping[str, Mapping[str, str]] = {
    "gpt2": {**_GPT, "hidden_size": "n_embd", "max_position_embeddings": "n_positions"},
    "bloom": {**_GPT, "max_position_embeddings": "seq_length"},
    "opt": {"num_key_value_heads": "", "intermediate_size": "ffn_dim", "rms_norm_eps": "", "rope_theta": ""},
    "gpt_neox": {"num_key_value_heads": "", "rms_norm_eps": "layer_norm_eps"},
}
QWEN_HYBRID = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "head_dim": 16,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 20,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
# What a model type's config.json has beside BASE, and where its checkpoint differs from Llama's.
USUAL: Mapping[str, Mapping[str, Any]] = {
    "granite": MULTIPLIERS,
    "granitemoehybrid": {
        **MULTIPLIERS,
        "layer_types": ["attention"] * 2,
        "num_local_experts": 0,
        "shared_intermediate_size": 40,
        "position_embedding_type": "rope",
        "mamba_n_heads": 8,
        "mamba_d_head": 12,
        "mamba_d_state": 20,
        "mamba_n_groups": 2,
    },
    "falcon_h1": {
        "head_dim": 12,
        "mamba_d_ssm": 60,
        "mamba_n_heads": 4,
        "mamba_d_head": 15,
        "mamba_d_state": 20,
        "mamba_n_groups": 2,
        "mamba_rms_norm": True,
        "mamba_norm_before_gate": False,
        **{f"{part}_multiplier": 0.5 + 0.1 * i for i, part in enumerate(FALCON_FACTORS)},
        "ssm_multipliers": [0.3, 0.5, 0.7, 0.9, 1.1],
        "mlp_multipliers": [0.8, 0.6],
    },
    "lfm2": {
        "layer_types": ["conv", "full_attention", "conv"],
        "num_hidden_layers": 3,
        "norm_eps": 1e-5,
        "block_auto_adjust_ff_dim": True,
        "block_multiple_of": 14,
        "mlp_rows": 56,  # of two thirds of 72, rounded up to 14
        "tie_word_embeddings": True,
    },
    "lfm3": {
        "layer_types": ["conv", "sliding_attention", "full_attention"],
        "num_hidden_layers": 3,
        "head_dim": 8,
        "sliding_window": 5,
        "norm_eps": 1e-5,
        "rope_theta": None,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": 1000000.0,
                "partial_rotary_factor": 0.5,
            },
        },
        "tie_word_embeddings": True,
    },
    "qwen3_5_text": QWEN_HYBRID,
    "qwen3_5_moe_text": {**QWEN_HYBRID, **QWEN_MOE, "shared_expert_intermediate_size": 28},
    "qwen3_next": {**QWEN_HYBRID, **QWEN_MOE, "shared_expert_intermediate_size": 28},
    "nemotron_h": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"],
        "head_dim": 12,
        "layer_norm_epsilon": 1e-5,
        "mlp_hidden_act": "relu2",
        "time_step_min": 0.001,
        "mamba_num_heads": 6,
        "mamba_head_dim": 10,
        "ssm_state_size": 20,
        "n_groups": 2,
        "conv_kernel": 4,
    },
    "minicpm": {"scale_emb": 3.0, "scale_depth": 1.4, "dim_model_base": 20},
    "exaone": {"num_layers": 2, "activation_function": "silu", "layer_norm_epsilon": 1e-5},
    "ernie4_5": {"head_dim": 12},
    "helium": {"head_dim": 12},
    "internlm3": {"head_dim": 12},
    "seed_oss": {"head_dim": 12},
    "smollm3": {"num_hidden_layers": 4},
    "ministral3": {"head_dim": 8},
    "qwen2_moe": {**QWEN_MOE, "norm_topk_prob": False, "shared_expert_intermediate_size": 28},
    "qwen3_moe": {**QWEN_MOE, "head_dim": 14},
    "gpt_oss": {
        "head_dim": 12,
        "num_hidden_layers": 3,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": False},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "granitemoe": {**MULTIPLIERS, "num_local_experts": 6, "num_experts_per_tok": 3},
    "lfm2_moe": {
        **QWEN_MOE,
        "num_hidden_layers": 4,
        "num_dense_layers": 1,
        "norm_eps": 1e-5,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "conv_L_cache": 3,
        "routed_scaling_factor": 1.5,
    },
    "ernie4_5_moe": {
        "moe_num_experts": 6,
        "moe_k": 2,
        "moe_intermediate_size": 20,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
        "moe_norm_min": 1e-12,
    },
    "gemma": {"head_dim": 12, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
    "gemma2": {"head_dim": 12, "tie_word_embeddings": True, **GEMMA},
    "gemma3_text": {"head_dim": 12, "tie_word_embeddings": True, **GEMMA},
    "glm4": {"head_dim": 8, "partial_rotary_factor": 0.5},
    "hunyuan_v1_dense": {"head_dim": 8},
    "exaone4": {"sliding_window": None},
    "olmo3": {"sliding_window": 5, "rope_theta": 5e5},
    "nanochat": {"head_dim": 8, "hidden_act": "relu2"},
    "arcee": {"hidden_act": "relu2"},
    "phi": {**LAYER_NORM, "hidden_act": "gelu_new", "partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    "gpt2": {"activation_function": "gelu_new", "tie_word_embeddings": True},
    "opt": {
        "activation_function": "relu",
        "tie_word_embeddings": True,
    },
    "gpt_neox": {
        "hidden_size": 64,
        **LAYER_NORM,
        "hidden_act": "gelu",
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": True,
    },
    "bloom": {"tie_word_embeddings": True},
    "stablelm": {
        "hidden_size": 64,
        **LAYER_NORM,
        "partial_rotary_factor": 0.25,
        "use_qkv_bias": False,
        "qk_layernorm": False,
        "use_parallel_residual": False,
    },
    "starcoder2": {
        "norm_epsilon": 1e-5,
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": True,
        "sliding_window": 5,
        "tie_word_embeddings": True,
    },
    "nemotron": {"norm_eps": 1e-5, "hidden_act": "relu2", "partial_rotary_factor": 0.5},
    "cohere2": {**LAYER_NORM, "sliding_window": 5, "logit_scale": 0.25, "tie_word_embeddings": True},
    "granite_swa": {
        **MULTIPLIERS,
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention"],
        "layer_rope_theta": [0, 10000.0],
    },
    "apertus": {"hidden_act": "xielu"},
}
SHAPES: Mapping[str, Callable[[Mapping[str, Any]], Shapes]] = {
    "apertus": apertus,
    "arcee": plain,
    "bloom": by_head,
    "cohere2": centered,
    "ernie4_5": llama,
    "ernie4_5_moe": ernie4_5_moe,
    "exaone": exaone,
    "exaone4": sandwiched,
    "gemma": sandwiched,
    "gemma2": sandwiched,
    "gemma3_text": sandwiched,
    "glm4": sandwiched,
    "gpt2": gpt2,
    "gpt_neox": by_head,
    "falcon_h1": falcon_h1,
    "gpt_oss": gpt_oss,
    "granite": llama,
    "granite_swa": granite_swa,
    "granitemoe": granitemoe,
    "granitemoehybrid": granitemoehybrid,
    "helium": llama,
    "hunyuan_v1_dense": hunyuan,
    "internlm3": llama,
    "lfm2_moe": lfm2_moe,
    "lfm2": lfm2,
    "lfm3": lfm3,
    "llama": llama,
    "minicpm": llama,
    "ministral": llama,
    "ministral3": llama,
    "mistral": llama,
    "mixtral": mixtral,
    "nanochat": plain,
    "nemotron": centered,
    "olmo2": sandwiched,
    "olmo3": sandwiched,
    "opt": opt,
    "phi": phi,
    "olmoe": qwen_moe,
    "phi3": phi3,
    "qwen2": llama,
    "qwen2_moe": qwen_moe,
    "qwen3": llama,
    "qwen3_moe": qwen_moe,
    "qwen3_5_text": qwen3_5,
    "qwen3_5_moe_text": qwen3_5,
    "qwen3_next": qwen3_5,
    "nemotron_h": nemotron_h,
    "seed_oss": llama,
    "smollm3": llama,
    "stablelm": stablelm,
    "starcoder2": centered,
}
