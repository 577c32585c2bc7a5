"""Mixtures of experts, and latent attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tests.spec import functions
from tests.spec.blocks import (
    Branch,
    Decoder,
    Layer,
    Mlp,
    Moe,
    Norm,
    lin,
)
from tests.spec.checkpoint import (
    Ckpt,
    attention,
    gated,
    head,
    inverse_frequency,
    moe,
    pairs,
    rms,
    rope_of,
    scaled,
    window,
)
from tests.spec.llama import llama


def qwen3_moe(c, W):
    return llama(c, W, mlp=lambda w, at, c, i: moe(w, at, c, normalize=c["norm_topk_prob"]))


def olmoe(c, W):
    return llama(c, W, mlp=lambda w, at, c, i: moe(w, at, c, normalize=c["norm_topk_prob"]))


def gpt_oss(c, W):
    w = Ckpt(c, W)
    layers = []
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        at = f"{L}.mlp"
        a = attention(w, f"{L}.self_attn", c, i, window=window(c, i), sinks=w(f"{L}.self_attn.sinks"))
        gu, gb, dn, db = (
            w(f"{at}.experts.{n}")
            for n in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
        )
        gu, dn = gu.swapaxes(1, 2), dn.swapaxes(1, 2)  # stored [E, in, out], gate and up alternate
        m = Moe(
            (w(f"{at}.router.weight"), w(f"{at}.router.bias")),
            c["num_experts_per_tok"],
            "topk_softmax",
            gu[:, 1::2],
            dn,
            "",
            gu[:, ::2],
            up_b=gb[:, 1::2],
            gate_b=gb[:, ::2],
            down_b=db,
            clamped=True,
        )
        layers.append(
            Layer(
                [
                    Branch([a], rms(w, f"{L}.input_layernorm", c)),
                    Branch([m], rms(w, f"{L}.post_attention_layernorm", c)),
                ]
            )
        )
    return Decoder(w("embed_tokens.weight"), layers, rms(w, "norm", c), head(w, c)), w


def mla(c, W, mult=1.0, res=1.0, logit=1.0, mlp=None, scale=None, interleaved=False):
    """MLA expanded to plain heads: k = [nope | rope], both as rows of two linears after one Norm: needs a second product."""
    w = Ckpt(c, W)
    layers = []
    h = c["num_attention_heads"]
    dn, dr, dv, rk = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
    eps = c["rms_norm_eps"]

    @dataclass
    class Mla:
        i: int

        def __call__(self, x, ctx, i):
            at = f"layers.{i}.self_attn"
            T = len(x)
            q = (
                lin(
                    Norm(w(f"{at}.q_a_layernorm.weight"), eps)(lin(x, *w.lin(f"{at}.q_a_proj"))),
                    w(f"{at}.q_b_proj.weight"),
                )
                if c.get("q_lora_rank")
                else lin(x, w(f"{at}.q_proj.weight"))
            )
            kv = lin(x, *w.lin(f"{at}.kv_a_proj_with_mqa"))
            lat, kr = kv[:, :rk], kv[:, rk:]
            kvb = lin(Norm(w(f"{at}.kv_a_layernorm.weight"), eps)(lat), w(f"{at}.kv_b_proj.weight")).reshape(
                T, h, dn + dv
            )
            q = q.reshape(T, h, dn + dr)
            order = pairs(dr, dr, interleaved)
            f, _, m = inverse_frequency(rope_of(c) | {"partial_rotary_factor": 1.0}, dr, c, 64)
            cs = functions.table(T, f)
            turn = lambda y: functions.rotate(y[..., order].transpose(1, 0, 2), *cs) * m
            qq = np.concatenate([q[..., :dn].transpose(1, 0, 2), turn(q[..., dn:])], -1)
            kk = np.concatenate([kvb[..., :dn].transpose(1, 0, 2), np.repeat(turn(kr[:, None]), h, 0)], -1)
            y = functions.attention(qq, kk, kvb[..., dn:].transpose(1, 0, 2), scale or (dn + dr) ** -0.5)
            return lin(y, *scaled(w.lin(f"{at}.o_proj"), res))

    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        m = mlp(w, f"{L}.mlp", i) if mlp else gated(w, f"{L}.mlp", c)
        if isinstance(m, Mlp):
            m.down = scaled(m.down, res)
        layers.append(
            Layer(
                [
                    Branch([Mla(i)], rms(w, f"{L}.input_layernorm", c)),
                    Branch([m], rms(w, f"{L}.post_attention_layernorm", c)),
                ]
            )
        )
    return Decoder(w("embed_tokens.weight"), layers, rms(w, "norm", c), head(w, c, scale=logit), mult), w


def minicpm3(c, W):
    return mla(
        c,
        W,
        c["scale_emb"],
        c["scale_depth"] / math.sqrt(c["num_hidden_layers"]),
        c["dim_model_base"] / c["hidden_size"],
    )


def deepseek_v3(c, W):
    def ff(w, at, i):
        if i < c["first_k_dense_replace"]:
            return gated(w, at, c)
        return moe(
            w,
            at,
            c | {"num_experts": c["n_routed_experts"]},
            kind="sigmoid",
            select=w(f"{at}.gate.e_score_correction_bias"),
            normalize=c["norm_topk_prob"],
            scale=c["routed_scaling_factor"],
            groups=c["n_group"],
            keep=c["topk_group"],
            shared=gated(w, f"{at}.shared_experts", c),
        )

    return mla(c, W, mlp=ff, interleaved=c.get("rope_interleave", True))


def deepseek_v2(c, W):
    def ff(w, at, i):
        if i < c["first_k_dense_replace"]:
            return gated(w, at, c)
        return moe(
            w,
            at,
            c | {"num_experts": c["n_routed_experts"]},
            normalize=False,
            scale=c["routed_scaling_factor"],
            shared=gated(w, f"{at}.shared_experts", c),
        )

    return mla(c, W, mlp=ff, interleaved=True)


def mixtral(c, W):
    return llama(
        c,
        W,
        mlp=lambda w, at, c, i: moe(w, at.replace(".mlp", ".block_sparse_moe"), c, names=("w1", "w3", "w2")),
    )


def qwen2_moe(c, W):
    return llama(
        c,
        W,
        mlp=lambda w, at, c, i: (
            gated(w, at, c)
            if w.has(f"{at}.gate_proj.weight")
            else moe(
                w,
                at,
                c,
                normalize=c["norm_topk_prob"],
                shared=gated(w, f"{at}.shared_expert", c),
                shared_gate=(w(f"{at}.shared_expert_gate.weight"), None),
            )
        ),
    )


glm4_moe_lite = deepseek_v3


def ernie4_5_moe(c, W):
    def ff(w, at, c, i):
        if w.has(f"{at}.gate_proj.weight"):
            return gated(w, at, c)
        sel = (
            w(f"{at}.moe_statics.e_score_correction_bias").reshape(-1)
            if w.has(f"{at}.moe_statics.e_score_correction_bias")
            else w(f"{at}.gate.moe_statics.e_score_correction_bias").reshape(-1)
        )
        return moe(
            w,
            at,
            c | {"num_experts": c["moe_num_experts"], "num_experts_per_tok": c["moe_k"]},
            select=sel,
            floor=c["moe_norm_min"],
            shared=gated(w, f"{at}.shared_experts", c)
            if w.has(f"{at}.shared_experts.gate_proj.weight")
            else None,
        )

    return llama(c, W, interleaved=True, mlp=ff)


def granitemoe(c, W):
    w = Ckpt(c, W)
    layers = []
    r = c["residual_multiplier"]
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        at = f"{L}.block_sparse_moe"
        a = attention(w, f"{L}.self_attn", c, i, scale=c["attention_multiplier"])
        a.o = scaled(a.o, r)
        gu, dn = w(f"{at}.input_linear.weight"), w(f"{at}.output_linear.weight")
        n = gu.shape[1] // 2
        m = Moe(
            (w(f"{at}.router.layer.weight"), None),
            c["num_experts_per_tok"],
            "topk_softmax",
            gu[:, n:],
            dn * r,
            c["hidden_act"],
            gu[:, :n],
        )
        layers.append(
            Layer(
                [
                    Branch([a], rms(w, f"{L}.input_layernorm", c)),
                    Branch([m], rms(w, f"{L}.post_attention_layernorm", c)),
                ]
            )
        )
    return Decoder(
        w("embed_tokens.weight"),
        layers,
        rms(w, "norm", c),
        head(w, c, scale=1 / c["logits_scaling"]),
        c["embedding_multiplier"],
    ), w
