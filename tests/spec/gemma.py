"""Gemma 1 to 4."""

from __future__ import annotations

import numpy as np

from tests.spec import functions
from tests.spec.blocks import (
    Branch,
    Decoder,
    Layer,
    Moe,
    Norm,
    PerLayer,
    lin,
)
from tests.spec.checkpoint import (
    Ckpt,
    attention,
    gated,
    head,
    rms,
    window,
)


def gemma(c, W):
    w = Ckpt(c, W)
    layers = []
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        layers.append(
            Layer(
                [
                    Branch([attention(w, f"{L}.self_attn", c, i)], rms(w, f"{L}.input_layernorm", c, 1)),
                    Branch([gated(w, f"{L}.mlp", c)], rms(w, f"{L}.post_attention_layernorm", c, 1)),
                ]
            )
        )
    return Decoder(
        w("embed_tokens.weight"), layers, rms(w, "norm", c, 1), head(w, c), c["hidden_size"] ** 0.5
    ), w


def gemma2(c, W):
    w = Ckpt(c, W)
    layers = []
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        a = attention(
            w,
            f"{L}.self_attn",
            c,
            i,
            layer_type=c["layer_types"][i],
            shift=1.0,
            scale=c["query_pre_attn_scalar"] ** -0.5,
            window=window(c, i),
            softcap=c.get("attn_logit_softcapping"),
        )
        layers.append(
            Layer(
                [
                    Branch(
                        [a],
                        rms(w, f"{L}.input_layernorm", c, 1),
                        rms(w, f"{L}.post_attention_layernorm", c, 1),
                    ),
                    Branch(
                        [gated(w, f"{L}.mlp", c)],
                        rms(w, f"{L}.pre_feedforward_layernorm", c, 1),
                        rms(w, f"{L}.post_feedforward_layernorm", c, 1),
                    ),
                ]
            )
        )
    return Decoder(
        w("embed_tokens.weight"),
        layers,
        rms(w, "norm", c, 1),
        head(w, c),
        c["hidden_size"] ** 0.5,
        softcap=c.get("final_logit_softcapping"),
    ), w


gemma3_text = gemma2


def gemma4_text(c, W):
    w = Ckpt(c, W)
    layers = []
    n = c["num_hidden_layers"]
    first = n - c["num_kv_shared_layers"]
    P = c.get("hidden_size_per_layer_input")
    S = 1.0  # the stream is kept divided by the product of the layers' scalars
    eps0 = c["rms_norm_eps"]
    per = {int(k): v for k, v in (c.get("per_layer_config") or {}).items()}
    for i in range(n):
        L, kind = f"layers.{i}", c["layer_types"][i]
        d = per.get(i, {}).get("head_dim", c["head_dim"])
        g = per.get(i, {}).get("num_key_value_heads", c["num_key_value_heads"])
        src = None if i < first else max(j for j in range(first) if c["layer_types"][j] == kind)
        names = {
            "q": "q_proj",
            "k": "k_proj",
            "v": "v_proj" if w.has(f"{L}.self_attn.v_proj.weight") else "k_proj",
            "o": "o_proj",
        }
        a = attention(
            w,
            f"{L}.self_attn",
            c,
            i,
            names=names,
            d=d,
            g=g,
            layer_type=kind,
            scale=1.0,
            window=window(c, i),
            v_norm=True,
            source=src,
            kv=src is None,
        )
        eps = eps0 / S**2
        post = lambda name: Norm(w(f"{L}.{name}.weight") / S, eps0)
        pre = lambda name: rms(w, f"{L}.{name}", c, eps=eps)
        m = gated(w, f"{L}.mlp", c, "gelu_tanh")
        br = [
            Branch([a], pre("input_layernorm"), post("post_attention_layernorm")),
            Branch([m], pre("pre_feedforward_layernorm"), post("post_feedforward_layernorm")),
        ]
        if c.get("enable_moe_block"):
            E = Moe(
                (w(f"{L}.router.proj.weight"), None),
                c["top_k_experts"],
                "softmax",
                *_experts(w, f"{L}.experts"),
                expert_scale=w(f"{L}.router.per_expert_scale"),
                own_router=Norm(w(f"{L}.router.scale") * c["hidden_size"] ** -0.5, eps),
            )
            n1, n2, p2 = (
                Norm(w(f"{L}.post_feedforward_layernorm_1.weight"), eps0),
                Norm(w(f"{L}.post_feedforward_layernorm_2.weight"), eps0),
                pre("pre_feedforward_layernorm_2"),
            )
            br[1] = Branch(
                [
                    lambda x, ctx, i, m=m, E=E, n1=n1, n2=n2, p2=p2, p1=pre("pre_feedforward_layernorm"): (
                        n1(m(p1(x))) + n2(E(p2(x), router_x=x))
                    )
                ],
                None,
                post("post_feedforward_layernorm"),
            )
        if P:
            br.append(
                PerLayer(
                    w(f"{L}.per_layer_input_gate.weight") * S,
                    w(f"{L}.per_layer_projection.weight"),
                    post("post_per_layer_input_norm"),
                )
            )
        layers.append(Layer(br))
        if w.has(f"{L}.layer_scalar"):
            S = S * float(w(f"{L}.layer_scalar").reshape(-1)[0])
    pl = None
    if P:
        E, M, N = (
            w("embed_tokens_per_layer.weight") * P**0.5 * 2**-0.5,
            w("per_layer_model_projection.weight") * c["hidden_size"] ** -0.5,
            np.tile(w("per_layer_projection_norm.weight"), n) * 2**-0.5,
        )
        pl = lambda ids, x: (functions.head_norm(lin(x, M), N, P, eps0) + E[ids]).reshape(len(ids), n, P)
    fin = Norm(w("norm.weight"), eps0 / S**2)
    return Decoder(
        w("embed_tokens.weight"),
        layers,
        fin,
        head(w, c),
        c["hidden_size"] ** 0.5,
        softcap=c.get("final_logit_softcapping"),
        per_layer=pl,
    ), w


def _experts(w, at):
    gu, dn = w(f"{at}.gate_up_proj"), w(f"{at}.down_proj")
    n = gu.shape[1] // 2
    return gu[:, n:], dn, "gelu_tanh", gu[:, :n]
