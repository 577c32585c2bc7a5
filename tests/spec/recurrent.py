"""Linear attention, Mamba2 and short convolutions beside attention."""

from __future__ import annotations

import numpy as np

from tests.spec.blocks import (
    Branch,
    Decoder,
    Delta,
    Layer,
    Mamba2,
    Mlp,
    Moe,
    ShortConv,
)
from tests.spec.checkpoint import (
    Ckpt,
    attention,
    fused_gated,
    gated,
    head,
    moe,
    rms,
    scaled,
    window,
)


def qwen3_5_text(c, W, split=True):
    w = Ckpt(c, W)
    layers = []
    hk, hv, dk, dv = (
        c[f"linear_{k}"] for k in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
    )
    h, d = c["num_attention_heads"], c["head_dim"]
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        if c["layer_types"][i] == "linear_attention":
            at = f"{L}.linear_attn"
            if split:
                qkv, z, b, a = (w(f"{at}.in_proj_{n}.weight") for n in ("qkv", "z", "b", "a"))
            else:  # qwen3_next: per key head [q, k, r·v, r·z] and [r·b, r·a]
                r = hv // hk
                Q = w(f"{at}.in_proj_qkvz.weight").reshape(hk, 2 * dk + 2 * r * dv, -1)
                B = w(f"{at}.in_proj_ba.weight").reshape(hk, 2 * r, -1)
                flat = lambda m: m.reshape(-1, m.shape[-1])
                q, k, v, z = (flat(m) for m in np.split(Q, np.cumsum([dk, dk, r * dv]), 1))
                b, a = (flat(m) for m in np.split(B, 2, 1))
                qkv = np.concatenate([q, k, v])
            mix = Delta(
                qkv,
                z,
                b,
                a,
                w(f"{at}.conv1d.weight")[:, 0],
                -np.exp(w(f"{at}.A_log")),
                w(f"{at}.dt_bias"),
                w(f"{at}.norm.weight"),
                c["rms_norm_eps"],
                w(f"{at}.out_proj.weight"),
                hk,
                hv,
                dk,
                dv,
            )
        else:
            Q, b = w.lin(f"{L}.self_attn.q_proj")
            Q = Q.reshape(h, 2, d, -1)
            mix = attention(
                w,
                f"{L}.self_attn",
                c,
                i,
                fused=[
                    (Q[:, 0].reshape(h * d, -1), None),
                    w.lin(f"{L}.self_attn.k_proj"),
                    w.lin(f"{L}.self_attn.v_proj"),
                ],
                shift=1.0,
                gate=(Q[:, 1].reshape(h * d, -1), None),
            )
        if w.has(f"{L}.mlp.gate.weight"):
            m = moe(
                w,
                f"{L}.mlp",
                c,
                normalize=c.get("norm_topk_prob", True),
                shared=gated(w, f"{L}.mlp.shared_expert", c),
                shared_gate=(w(f"{L}.mlp.shared_expert_gate.weight"), None),
            )
        else:
            m = gated(w, f"{L}.mlp", c)
        layers.append(
            Layer(
                [
                    Branch([mix], rms(w, f"{L}.input_layernorm", c, 1)),
                    Branch([m], rms(w, f"{L}.post_attention_layernorm", c, 1)),
                ]
            )
        )
    return Decoder(w("embed_tokens.weight"), layers, rms(w, "norm", c, 1), head(w, c)), w


def qwen3_next(c, W):
    return qwen3_5_text(c, W, split=False)


qwen3_5_moe_text = qwen3_5_text


def lfm2(c, W):
    w = Ckpt(c, W)
    layers = []
    three = c["model_type"] == "lfm3"
    for i in range(c["num_hidden_layers"]):
        L, kind = f"layers.{i}", c["layer_types"][i]
        if kind == "conv":
            mix = ShortConv(
                w.lin(f"{L}.conv.in_proj"),
                w(f"{L}.conv.conv.weight")[:, 0],
                w(f"{L}.conv.conv.bias") if w.has(f"{L}.conv.conv.bias") else None,
                w.lin(f"{L}.conv.out_proj"),
            )
        elif three:
            mix = attention(
                w,
                f"{L}.self_attn",
                c,
                i,
                layer_type=kind,
                window=window(c, i),
                gate=w.lin(f"{L}.self_attn.gate_proj"),
                gate_heads=True,
            )
        else:
            mix = attention(
                w,
                f"{L}.self_attn",
                c,
                i,
                names={"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"},
                qk=("q_layernorm", "k_layernorm"),
            )
        F = f"{L}.feed_forward"
        if w.has(f"{F}.gate.weight"):
            m = moe(
                w,
                F,
                c,
                kind="sigmoid",
                names=("w1", "w3", "w2"),
                select=w(f"{F}.expert_bias") if w.has(f"{F}.expert_bias") else None,
                normalize=c["norm_topk_prob"],
                scale=c["routed_scaling_factor"],
            )
        else:
            m = gated(w, F, c, "silu", ("w1", "w3", "w2"))
        post = lambda n: rms(w, f"{L}.{n}", c) if three else None
        layers.append(
            Layer(
                [
                    Branch([mix], rms(w, f"{L}.operator_norm", c), post("post_operator_norm")),
                    Branch([m], rms(w, f"{L}.ffn_norm", c), post("post_ffn_norm")),
                ]
            )
        )
    return Decoder(w("embed_tokens.weight"), layers, rms(w, "embedding_norm", c), head(w, c)), w


lfm2_moe = lfm3 = lfm2


def granite(c, W):
    w = Ckpt(c, W)
    layers = []
    r = c["residual_multiplier"]
    kind = c["model_type"]
    swa = kind == "granite_swa"
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        hybrid = kind == "granitemoehybrid"
        if hybrid and c["layer_types"][i] == "linear_attention":
            mix = mamba(w, f"{L}.mamba", c)
            mix.out = scaled(mix.out, r)
        else:
            more = {}
            if swa:
                more = dict(sinks=w(f"{L}.self_attn.sinks"), window=window(c, i))
                if t := c["layer_rope_theta"][i]:
                    c = c | {"rope_parameters": c["rope_parameters"] | {"rope_theta": t}}
            mix = attention(
                w,
                f"{L}.self_attn",
                c,
                i,
                scale=c["attention_multiplier"],
                rope=not hybrid or c.get("position_embedding_type") == "rope",
                **more,
            )
            mix.o = scaled(mix.o, r)
            if swa and not c["layer_rope_theta"][i]:
                mix.freq = np.zeros_like(mix.freq)
        if hybrid:
            m = fused_gated(w, f"{L}.shared_mlp", c, ("input_linear", "output_linear"))
            m.down = scaled(m.down, r)
            if c["num_local_experts"]:
                at = f"{L}.block_sparse_moe"
                gu, dn = (
                    (w(f"{at}.experts.gate_up_proj"), w(f"{at}.experts.down_proj"))
                    if w.has(f"{at}.experts.gate_up_proj")
                    else (w(f"{at}.input_linear.weight"), w(f"{at}.output_linear.weight"))
                )
                rt = (
                    w(f"{at}.router.weight")
                    if w.has(f"{at}.router.weight")
                    else w(f"{at}.router.layer.weight")
                )
                I = gu.shape[1] // 2
                m = Moe(
                    (rt, None),
                    c["num_experts_per_tok"],
                    "topk_softmax",
                    gu[:, I:],
                    dn * r,
                    c["hidden_act"],
                    gu[:, :I],
                    shared=m,
                )
        else:
            m = gated(w, f"{L}.mlp", c)
            m.down = scaled(m.down, r)
        layers.append(
            Layer(
                [
                    Branch([mix], rms(w, f"{L}.input_layernorm", c)),
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


granitemoehybrid = granite_swa = granite


def mamba(w, at, c, mup=None, scale=1.0):
    h, d, n, g = c["mamba_n_heads"], c["mamba_d_head"], c["mamba_d_state"], c["mamba_n_groups"]
    inn = w.lin(f"{at}.in_proj")
    inner = h * d
    if mup is not None:
        inn = (inn[0] * mup[:, None] * scale, None if inn[1] is None else inn[1] * mup)
    has = w.has(f"{at}.norm.weight")
    return Mamba2(
        inn,
        w(f"{at}.conv1d.weight")[:, 0],
        w(f"{at}.conv1d.bias") if w.has(f"{at}.conv1d.bias") else None,
        -np.exp(w(f"{at}.A_log")),
        w(f"{at}.dt_bias"),
        w(f"{at}.D"),
        w(f"{at}.norm.weight") if has else None,
        c.get("rms_norm_eps") or c.get("layer_norm_epsilon"),
        w.lin(f"{at}.out_proj"),
        h,
        d,
        n,
        g,
        inner // g,
    )


def falcon_h1(c, W):
    w = Ckpt(c, W)
    layers = []
    h, d, n, g = c["mamba_n_heads"], c["mamba_d_head"], c["mamba_d_state"], c["mamba_n_groups"]
    inner = h * d
    s = c["ssm_multipliers"]
    mup = np.concatenate(
        [
            np.full(inner, s[0]),
            np.full(inner, s[1]),
            np.full(g * n, s[2]),
            np.full(g * n, s[3]),
            np.full(h, s[4]),
        ]
    )
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        mm = mamba(w, f"{L}.mamba", c, mup, c["ssm_in_multiplier"])
        mm.out = scaled(mm.out, c["ssm_out_multiplier"])
        mm.gate_first = not c["mamba_norm_before_gate"]
        a = attention(w, f"{L}.self_attn", c, i)
        t = c["attention_in_multiplier"]
        a.q, a.k, a.v = ((x[0] * t, x[1]) for x in (a.q, a.k, a.v))
        a.k = scaled(a.k, c["key_multiplier"])
        a.o = scaled(a.o, c["attention_out_multiplier"])
        m = gated(w, f"{L}.feed_forward", c)
        gm, dm = c["mlp_multipliers"]
        m.gate = scaled(m.gate, gm)
        m.down = scaled(m.down, dm)
        layers.append(
            Layer(
                [
                    Branch([mm, a], rms(w, f"{L}.input_layernorm", c)),
                    Branch([m], rms(w, f"{L}.pre_ff_layernorm", c)),
                ]
            )
        )
    return Decoder(
        w("embed_tokens.weight"),
        layers,
        rms(w, "final_layernorm", c),
        head(w, c, scale=c["lm_head_multiplier"]),
        c["embedding_multiplier"],
    ), w


def nemotron_h(c, W):
    w = Ckpt(c, W, "backbone.")
    layers = []
    c = c | {
        "mamba_n_heads": c["mamba_num_heads"],
        "mamba_d_head": c["mamba_head_dim"],
        "mamba_d_state": c["ssm_state_size"],
        "mamba_n_groups": c["n_groups"],
        "rms_norm_eps": c["layer_norm_epsilon"],
    }
    for i, kind in enumerate(c.get("layers_block_type") or c["layer_types"]):
        at = f"layers.{i}.mixer"
        if kind == "linear_attention":
            m = mamba(w, at, c)
            m.dt_min = c["time_step_min"]
        elif kind == "full_attention":
            m = attention(w, at, c, i, rope=False)
        elif kind == "mlp":
            m = Mlp(w.lin(f"{at}.up_proj"), w.lin(f"{at}.down_proj"), c["mlp_hidden_act"])
        else:
            E = c["n_routed_experts"]
            up, dn = (
                (w(f"{at}.experts.up_proj"), w(f"{at}.experts.down_proj"))
                if w.has(f"{at}.experts.up_proj")
                else (
                    np.stack([w(f"{at}.experts.{e}.{n}.weight") for e in range(E)])
                    for n in ("up_proj", "down_proj")
                )
            )
            m = Moe(
                (w(f"{at}.gate.weight"), None),
                c["num_experts_per_tok"],
                "sigmoid",
                up,
                dn,
                c["mlp_hidden_act"],
                None,
                select=w(f"{at}.gate.e_score_correction_bias"),
                normalize=c["norm_topk_prob"],
                scale=c["routed_scaling_factor"],
                shared=Mlp(
                    w.lin(f"{at}.shared_experts.up_proj"),
                    w.lin(f"{at}.shared_experts.down_proj"),
                    c["mlp_hidden_act"],
                ),
            )
        layers.append(Layer([Branch([m], rms(w, f"layers.{i}.norm", c))]))
    return Decoder(
        w("embeddings.weight" if w.has("embeddings.weight") else "embed_tokens.weight"),
        layers,
        rms(w, "norm_f" if w.has("norm_f.weight") else "norm", c),
        head(w, c, "embeddings.weight" if w.has("embeddings.weight") else "embed_tokens.weight"),
    ), w
