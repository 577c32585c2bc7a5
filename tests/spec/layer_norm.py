"""The family of LayerNorm: gpt2, opt, bloom, pythia, phi, stablelm, starcoder2, nemotron, cohere2."""

from __future__ import annotations

import math

import numpy as np

from tests.spec.blocks import (
    Attention,
    Branch,
    Decoder,
    Layer,
    Mlp,
    Norm,
)
from tests.spec.checkpoint import (
    Ckpt,
    attention,
    fold_beta,
    gated,
    head,
    layer_norm,
    pairs,
    rope_of,
    window,
)


def phi(c, W):
    w = Ckpt(c, W)
    layers = []
    eps = c["layer_norm_eps"]
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        n, beta = layer_norm(w, f"{L}.input_layernorm", eps)
        a = attention(
            w,
            f"{L}.self_attn",
            c,
            i,
            names={"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "dense"},
            beta=beta,
        )
        m = Mlp(fold_beta(w.lin(f"{L}.mlp.fc1"), beta), w.lin(f"{L}.mlp.fc2"), c["hidden_act"])
        layers.append(Layer([Branch([a], n), Branch([m], n)], parallel=True))
    n, beta = layer_norm(w, "final_layernorm", eps)
    return Decoder(w("embed_tokens.weight"), layers, n, head(w, c, beta=beta)), w


def opt(c, W):
    w = Ckpt(c, W, "model.decoder.")
    layers = []
    c["num_attention_heads"]
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        n1, b1 = layer_norm(w, f"{L}.self_attn_layer_norm", 1e-5)
        n2, b2 = layer_norm(w, f"{L}.final_layer_norm", 1e-5)
        a = attention(
            w,
            f"{L}.self_attn",
            c,
            i,
            names={"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"},
            rope=False,
            beta=b1,
        )
        layers.append(
            Layer(
                [
                    Branch([a], n1),
                    Branch(
                        [Mlp(fold_beta(w.lin(f"{L}.fc1"), b2), w.lin(f"{L}.fc2"), c["activation_function"])],
                        n2,
                    ),
                ]
            )
        )
    n, beta = layer_norm(w, "final_layer_norm", 1e-5)
    return Decoder(
        w("embed_tokens.weight"), layers, n, head(w, c, beta=beta), positions=w("embed_positions.weight")[2:]
    ), w


def gpt2(c, W):
    w = Ckpt(c, W, "transformer.")
    layers = []
    D = c["n_embd"]
    eps = c["layer_norm_epsilon"]
    c1 = lambda n: (w(n + ".weight").T, w(n + ".bias"))  # Conv1D is [in, out]
    {"num_attention_heads": c["n_head"], "hidden_size": D}
    for i in range(c["n_layer"]):
        L = f"h.{i}"
        n1, b1 = layer_norm(w, f"{L}.ln_1", eps)
        n2, b2 = layer_norm(w, f"{L}.ln_2", eps)
        A, b = fold_beta(c1(f"{L}.attn.c_attn"), b1)
        q, k, v = ((A[s], b[s]) for s in (slice(0, D), slice(D, 2 * D), slice(2 * D, None)))
        a = Attention(
            q,
            k,
            v,
            c1(f"{L}.attn.c_proj"),
            c["n_head"],
            c["n_head"],
            D // c["n_head"],
            (D // c["n_head"]) ** -0.5 / (i + 1 if c.get("scale_attn_by_inverse_layer_idx") else 1),
        )
        layers.append(
            Layer(
                [
                    Branch([a], n1),
                    Branch(
                        [
                            Mlp(
                                fold_beta(c1(f"{L}.mlp.c_fc"), b2),
                                c1(f"{L}.mlp.c_proj"),
                                c["activation_function"],
                            )
                        ],
                        n2,
                    ),
                ]
            )
        )
    n, beta = layer_norm(w, "ln_f", eps)
    return Decoder(
        w("wte.weight"), layers, n, head(w, c, "wte.weight", beta=beta), positions=w("wpe.weight")
    ), w


def by_head(wb, h, d):
    """[h, 3, d] rows -> q, k, v."""
    W, b = wb
    W = W.reshape(h, 3, d, -1)
    b = None if b is None else b.reshape(h, 3, d)
    return [(W[:, j].reshape(h * d, -1), None if b is None else b[:, j].reshape(-1)) for j in range(3)]


def gpt_neox(c, W):
    w = Ckpt(c, W, "gpt_neox.")
    layers = []
    h = c["num_attention_heads"]
    d = c["hidden_size"] // h
    eps = c["layer_norm_eps"]
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        n1, b1 = layer_norm(w, f"{L}.input_layernorm", eps)
        n2, b2 = layer_norm(w, f"{L}.post_attention_layernorm", eps)
        a = attention(
            w,
            f"{L}.attention",
            c,
            i,
            names={"o": "dense"},
            fused=by_head(w.lin(f"{L}.attention.query_key_value"), h, d),
            beta=b1,
        )
        m = Mlp(
            fold_beta(w.lin(f"{L}.mlp.dense_h_to_4h"), b2), w.lin(f"{L}.mlp.dense_4h_to_h"), c["hidden_act"]
        )
        layers.append(Layer([Branch([a], n1), Branch([m], n2)], parallel=c["use_parallel_residual"]))
    n, beta = layer_norm(w, "final_layer_norm", eps)
    H = w("embed_out.weight", True) if w.has("embed_out.weight", True) else w("lm_head.weight", True)
    return Decoder(w("embed_in.weight"), layers, n, fold_beta((H, None), beta)), w


def bloom(c, W):
    w = Ckpt(c, W, "transformer.")
    layers = []
    h = c["n_head"]
    D = c["hidden_size"]
    d = D // h
    eps = c["layer_norm_epsilon"]
    p = 2 ** math.floor(math.log2(h))
    base = 2 ** (-(2 ** -(math.log2(p) - 3)))
    sl = [base ** (i + 1) for i in range(p)]
    if p != h:
        extra = 2 ** (-(2 ** -(math.log2(2 * p) - 3)))
        sl += [extra ** (2 * i + 1) for i in range(min(p, h - p))]
    for i in range(c["n_layer"]):
        L = f"h.{i}"
        n1, b1 = layer_norm(w, f"{L}.input_layernorm", eps)
        n2, b2 = layer_norm(w, f"{L}.post_attention_layernorm", eps)
        q, k, v = (fold_beta(x, b1) for x in by_head(w.lin(f"{L}.self_attention.query_key_value"), h, d))
        a = Attention(q, k, v, w.lin(f"{L}.self_attention.dense"), h, h, d, d**-0.5, slopes=np.array(sl))
        layers.append(
            Layer(
                [
                    Branch([a], n1),
                    Branch(
                        [
                            Mlp(
                                fold_beta(w.lin(f"{L}.mlp.dense_h_to_4h"), b2),
                                w.lin(f"{L}.mlp.dense_4h_to_h"),
                                "gelu_tanh",
                            )
                        ],
                        n2,
                    ),
                ]
            )
        )
    n, beta = layer_norm(w, "ln_f", eps)
    en, eb = layer_norm(w, "word_embeddings_layernorm", eps)
    E = w("word_embeddings.weight")
    return Decoder(
        en(E) + eb, layers, n, head(w, c, "word_embeddings.weight", beta=beta)
    ), w  # the embedding's LayerNorm: into the table


def stablelm(c, W):
    w = Ckpt(c, W)
    layers = []
    eps = c["layer_norm_eps"]
    par = c["use_parallel_residual"]
    h, g = c["num_attention_heads"], c["num_key_value_heads"]
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        n1, b1 = layer_norm(w, f"{L}.input_layernorm", eps)
        n2, b2 = (n1, b1) if par else layer_norm(w, f"{L}.post_attention_layernorm", eps)
        a = attention(w, f"{L}.self_attn", c, i, beta=b1, qk=None)
        if c["qk_layernorm"]:
            d = a.d
            order = pairs(d, int(d * rope_of(c)["partial_rotary_factor"]), False)
            a.q_norm, a.k_norm = (
                np.concatenate([w(f"{L}.self_attn.{n}_layernorm.norms.{j}.weight")[order] for j in range(m)])
                for n, m in (("q", h), ("k", g))
            )
            a.centered, a.eps, a.size = True, eps, d
        m = gated(w, f"{L}.mlp", c)
        m.gate, m.up = fold_beta(m.gate, b2), fold_beta(m.up, b2)
        layers.append(Layer([Branch([a], n1), Branch([m], n2)], parallel=par))
    n, beta = layer_norm(w, "norm", eps)
    return Decoder(w("embed_tokens.weight"), layers, n, head(w, c, beta=beta)), w


def starcoder2(c, W):
    w = Ckpt(c, W)
    layers = []
    eps = c["norm_epsilon"]
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        n1, b1 = layer_norm(w, f"{L}.input_layernorm", eps)
        n2, b2 = layer_norm(w, f"{L}.post_attention_layernorm", eps)
        a = attention(w, f"{L}.self_attn", c, i, beta=b1, window=c.get("sliding_window"))
        layers.append(
            Layer(
                [
                    Branch([a], n1),
                    Branch(
                        [
                            Mlp(
                                fold_beta(w.lin(f"{L}.mlp.c_fc"), b2),
                                w.lin(f"{L}.mlp.c_proj"),
                                c["hidden_act"],
                            )
                        ],
                        n2,
                    ),
                ]
            )
        )
    n, beta = layer_norm(w, "norm", eps)
    return Decoder(w("embed_tokens.weight"), layers, n, head(w, c, beta=beta)), w


def nemotron(c, W):
    w = Ckpt(c, W)
    layers = []
    eps = c["norm_eps"]

    def ln(n):
        m, b = layer_norm(w, n, eps)
        return Norm(m.w + 1, eps, True), b

    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        n1, b1 = ln(f"{L}.input_layernorm")
        n2, b2 = ln(f"{L}.post_attention_layernorm")
        layers.append(
            Layer(
                [
                    Branch([attention(w, f"{L}.self_attn", c, i, beta=b1)], n1),
                    Branch(
                        [
                            Mlp(
                                fold_beta(w.lin(f"{L}.mlp.up_proj"), b2),
                                w.lin(f"{L}.mlp.down_proj"),
                                c["hidden_act"],
                            )
                        ],
                        n2,
                    ),
                ]
            )
        )
    n, beta = ln("norm")
    return Decoder(w("embed_tokens.weight"), layers, n, head(w, c, beta=beta)), w


def cohere2(c, W):
    w = Ckpt(c, W)
    layers = []
    eps = c["layer_norm_eps"]
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        n, _ = layer_norm(w, f"{L}.input_layernorm", eps)
        win = window(c, i)
        layers.append(
            Layer(
                [
                    Branch(
                        [
                            attention(
                                w, f"{L}.self_attn", c, i, interleaved=True, rope=win is not None, window=win
                            )
                        ],
                        n,
                    ),
                    Branch([gated(w, f"{L}.mlp", c)], n),
                ],
                parallel=True,
            )
        )
    return Decoder(
        w("embed_tokens.weight"), layers, layer_norm(w, "norm", eps)[0], head(w, c, scale=c["logit_scale"])
    ), w
