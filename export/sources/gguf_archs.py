"""The architectures of GGUF files: whose model type each is, and what its metadata say of config.json.

What all have in common, sizes and ropes, gguf_config reads. A key that stands in neither is refused unless it
changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flatlm.runtime.errors import UnsupportedError
from flatlm.runtime.settings import Settings

Config = dict[str, Any]


def _nothing(facts: Settings, config: Config) -> Config:
    return {}


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """How a GGUF architecture is read.

    permuted: rows of q and k lie with the elements that turn together side by side, not in two halves
    act: the activation of its MLPs, as config.json says it; files do not say
    windowed: the model type of a file that has attention.sliding_window, where it is another
    sparse: how files with experts are read, where they are of the same architecture
    also: other model types whose files are of this architecture and read as it
    local_theta: base of layers with a window in files that do not say; None: that of the others
    keys: key of the metadata, without the architecture → key of config.json; the value stays as it is
    more: what else of config.json follows, from the metadata and what was read of them so far
    obeyed: keys that `more` reads
    """

    model_type: str
    permuted: bool = False
    act: str = "silu"
    windowed: str = ""
    also: tuple[str, ...] = ()
    sparse: GgufArchitecture | None = None
    local_theta: float | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    more: Callable[[Settings, Config], Config] = _nothing
    obeyed: frozenset[str] = frozenset()

    @property
    def model_types(self) -> tuple[str, ...]:
        """All that files of this architecture may hold."""
        sparse = self.sparse.model_types if self.sparse else ()
        return tuple(filter(None, (self.model_type, self.windowed, *self.also, *sparse)))


def _always(**given: Any) -> Callable[[Settings, Config], Config]:
    """What llama.cpp does whatever the file says."""
    return lambda facts, config: given


def _counted_as(key: str) -> Callable[[Settings, Config], Config]:
    """Experts by this key of config.json."""
    return lambda facts, config: {key: config["num_experts"], "num_experts": 0}


def _gpt_oss(facts: Settings, config: Config) -> Config:
    rope = config.get("rope_parameters") or {}
    whole = {"rope_parameters": {**rope, "truncate": False}} if rope else {}
    return {**_counted_as("num_local_experts")(facts, config), **whole}


def _lfm2_moe(facts: Settings, config: Config) -> Config:
    if (kind := facts.get("expert_gating_func", int, 2)) != 2:
        key = f"{facts.within}expert_gating_func"
        raise UnsupportedError(
            f"{facts.place} cannot be exported: {key} {kind} (flatlm has 2 here, sigmoids)"
        )
    return {**_lfm2(facts, config), "norm_topk_prob": True}


def _gemma(facts: Settings, config: Config) -> Config:
    """llama.cpp's scale of the scores: by the head's size, in the models of 27B by the stream's."""
    largest = config["num_hidden_layers"] in (46, 62)
    size = config["hidden_size"] // config["num_attention_heads"] if largest else config["head_dim"]
    return {"query_pre_attn_scalar": size}


def _lfm2(facts: Settings, config: Config) -> Config:
    """Layers without key/value heads are convolutions; the MLP's width is worked out."""
    heads = facts.one_or_more("attention.head_count_kv", int)
    heads = heads * config["num_hidden_layers"] if len(heads) == 1 else heads
    kinds = ["full_attention" if count else "conv" for count in heads]
    return {"layer_types": kinds, "block_auto_adjust_ff_dim": False}


def _always_normalized(facts: Settings, config: Config) -> Config:
    """llama.cpp's qwen3moe: the shares of the chosen experts add up to one, and every layer has experts."""
    return {"norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1}


def _granite(facts: Settings, config: Config) -> Config:
    if not facts.get("rope.scaling.finetuned", bool, True):
        key = f"{facts.within}rope.scaling.finetuned"
        raise UnsupportedError(f"{facts.place} cannot be exported: {key} False")
    shared = facts.get("expert_shared_feed_forward_length", int, config["intermediate_size"], low=1)
    return {"intermediate_size": config["intermediate_size"] if config["num_experts"] else shared}


def _minicpm(facts: Settings, config: Config) -> Config:
    """The scales of its config.json, which the file has worked out."""
    branch = facts.get("residual_scale", float, 1.0, above=0) * math.sqrt(config["num_hidden_layers"])
    head = facts.get("logit_scale", float, config["hidden_size"], above=0)
    return {"scale_depth": decimal(branch), "dim_model_base": round(config["hidden_size"] / head)}


def _ministral3(facts: Settings, config: Config) -> Config:
    scaled = facts.get("attention.temperature_scale", float, 0.0)
    rope = {**config["rope_parameters"], "llama_4_scaling_beta": decimal(scaled)}
    if weight := facts.get("rope.scaling.yarn_log_multiplier", float, 0.0):
        rope |= {"mscale": 1.0, "mscale_all_dim": decimal(weight)}
    return {"rope_parameters": rope}


def decimal(value: float) -> float:
    """Stored as float32: the decimal that was meant, 1e-05 and not 9.99999974e-06."""
    with np.errstate(over="ignore"):  # of a damaged file; no reader takes an infinite number
        return float(str(np.float32(value)))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TANH = "gelu_pytorch_tanh"
_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_EXPERTS = {
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_SHARED = {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}
_MULTIPLIERS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
ARCHITECTURES: Mapping[str, GgufArchitecture] = {
    "arcee": GgufArchitecture("arcee", permuted=True, act="relu2"),
    "bloom": GgufArchitecture("bloom", act=_TANH),
    "ernie4_5": GgufArchitecture("ernie4_5"),
    "ernie4_5-moe": GgufArchitecture(
        "ernie4_5_moe",
        keys={
            "expert_used_count": "moe_k",
            "expert_feed_forward_length": "moe_intermediate_size",
            "expert_shared_count": "moe_num_shared_experts",
            "leading_dense_block_count": "moe_layer_start_index",
            "interleave_moe_layer_step": "moe_layer_interval",
        },
        more=_counted_as("moe_num_experts"),
        obeyed=_words("expert_shared_feed_forward_length"),
    ),
    "exaone": GgufArchitecture("exaone"),
    "exaone4": GgufArchitecture("exaone4"),
    "gemma": GgufArchitecture("gemma", act=_TANH),
    "gemma2": GgufArchitecture("gemma2", act=_TANH, keys=_CAPS, more=_gemma),
    "gemma3": GgufArchitecture("gemma3_text", act=_TANH, local_theta=1e4, keys=_CAPS, more=_gemma),
    "glm4": GgufArchitecture("glm4"),
    "gpt-oss": GgufArchitecture("gpt_oss", keys={"expert_used_count": "num_experts_per_tok"}, more=_gpt_oss),
    "granitemoe": GgufArchitecture(
        "granitemoe",
        permuted=True,
        keys={**_MULTIPLIERS, "expert_used_count": "num_experts_per_tok"},
        more=_counted_as("num_local_experts"),
    ),
    "olmoe": GgufArchitecture(
        "olmoe",
        keys={"expert_used_count": "num_experts_per_tok"},
        more=_always(norm_topk_prob=False),
    ),
    "qwen2moe": GgufArchitecture(
        "qwen2_moe", keys={**_EXPERTS, **_SHARED}, more=_always(norm_topk_prob=False)
    ),
    "qwen3moe": GgufArchitecture("qwen3_moe", keys=_EXPERTS, more=_always_normalized),
    "granite": GgufArchitecture(
        "granite",
        permuted=True,
        keys=_MULTIPLIERS,
        more=_granite,
        also=("granitemoehybrid",),
        # Of Granite 4 without recurrences the file tells the sizes that those would have.
        obeyed=_words("""
            rope.scaling.finetuned expert_shared_feed_forward_length ssm.conv_kernel ssm.state_size
            ssm.group_count ssm.inner_size ssm.time_step_rank
        """),
    ),
    "hunyuan-dense": GgufArchitecture("hunyuan_v1_dense"),
    "lfm2": GgufArchitecture(
        "lfm2",
        keys={"shortconv.l_cache": "conv_L_cache"},
        more=_lfm2,
        obeyed=_words("attention.head_count_kv"),
    ),
    "lfm2moe": GgufArchitecture(
        "lfm2_moe",
        keys={
            **_EXPERTS,
            "shortconv.l_cache": "conv_L_cache",
            "leading_dense_block_count": "num_dense_layers",
            "expert_weights_scale": "routed_scaling_factor",
        },
        more=_lfm2_moe,
        obeyed=_words("attention.head_count_kv expert_gating_func"),
    ),
    "llama": GgufArchitecture(
        "llama",
        permuted=True,
        also=("internlm3", "mistral"),
        sparse=GgufArchitecture(
            "mixtral",
            permuted=True,
            keys={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        ),
    ),
    "minicpm": GgufArchitecture(
        "minicpm",
        permuted=True,
        keys={"embedding_scale": "scale_emb"},
        more=_minicpm,
        obeyed=_words("residual_scale logit_scale"),
    ),
    "mistral3": GgufArchitecture(
        "ministral3",
        permuted=True,
        more=_ministral3,
        obeyed=_words("attention.temperature_scale rope.scaling.yarn_log_multiplier"),
    ),
    "nemotron": GgufArchitecture("nemotron", act="relu2"),
    "olmo2": GgufArchitecture("olmo2", windowed="olmo3"),
    "phi2": GgufArchitecture("phi", act="gelu_new"),
    "phi3": GgufArchitecture("phi3"),
    "qwen2": GgufArchitecture("qwen2"),
    "qwen3": GgufArchitecture("qwen3"),
    "seed_oss": GgufArchitecture("seed_oss"),
    "smollm3": GgufArchitecture("smollm3", permuted=True),
    "stablelm": GgufArchitecture("stablelm", keys={"use_parallel_residual": "use_parallel_residual"}),
    "starcoder2": GgufArchitecture("starcoder2", act=_TANH),
}
