"""Llama and what is its shape but for names, folds and norms."""

from __future__ import annotations

import math

import numpy as np

from tests.spec.blocks import (
    Branch,
    Decoder,
    Layer,
    Mlp,
    Norm,
)
from tests.spec.checkpoint import (
    Ckpt,
    attention,
    fused_gated,
    gated,
    head,
    rms,
    scaled,
    window,
)


def llama(c, W, ctx=None, bodies=None, mlp=None, **kw):
    w = Ckpt(c, W)
    layers = []
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        a = attention(
            w,
            f"{L}.self_attn",
            c,
            i,
            window=window(c, i) if c["model_type"] not in ("llama",) else None,
            context=ctx,
            **kw,
        )
        m = mlp(w, f"{L}.mlp", c, i) if mlp else gated(w, f"{L}.mlp", c)
        layers.append(
            Layer(
                [
                    Branch([a], rms(w, f"{L}.input_layernorm", c)),
                    Branch([m], rms(w, f"{L}.post_attention_layernorm", c)),
                ]
            )
        )
    return Decoder(w("embed_tokens.weight"), layers, rms(w, "norm", c), head(w, c)), w


mistral = ministral = qwen2 = qwen3 = seed_oss = internlm3 = llama


def ministral3(c, W):
    return llama(c, W)  # llama_4_scaling is 1 below original_max_position_embeddings


def arcee(c, W):
    return llama(
        c, W, mlp=lambda w, at, c, i: Mlp(w.lin(f"{at}.up_proj"), w.lin(f"{at}.down_proj"), c["hidden_act"])
    )


def smollm3(c, W):
    d, w = llama(c, W)
    for i, layer in enumerate(d.layers):
        if not c["no_rope_layers"][i]:
            layer.branches[0].bodies[0].freq = np.zeros_like(layer.branches[0].bodies[0].freq)
    return d, w


def helium(c, W):
    return llama(c, W, interleaved=True)


ernie4_5 = helium


def hunyuan_v1_dense(c, W):
    return llama(c, W, qk=("query_layernorm", "key_layernorm"), norm_last=True)


def phi3(c, W, ctx=None):
    w = Ckpt(c, W)
    layers = []
    h, g = c["num_attention_heads"], c["num_key_value_heads"]
    d = c["hidden_size"] // h
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        Q, _b = w.lin(f"{L}.self_attn.qkv_proj")
        cut = [slice(0, h * d), slice(h * d, (h + g) * d), slice((h + g) * d, None)]
        a = attention(
            w,
            f"{L}.self_attn",
            c,
            i,
            fused=[(Q[s], None) for s in cut],
            context=ctx,
            window=c.get("sliding_window"),
        )
        layers.append(
            Layer(
                [
                    Branch([a], rms(w, f"{L}.input_layernorm", c)),
                    Branch([fused_gated(w, f"{L}.mlp", c)], rms(w, f"{L}.post_attention_layernorm", c)),
                ]
            )
        )
    return Decoder(w("embed_tokens.weight"), layers, rms(w, "norm", c), head(w, c)), w


def olmo2(c, W):
    w = Ckpt(c, W)
    layers = []
    nope = c["model_type"] == "exaone4"
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        win = window(c, i) if c.get("layer_types") else None
        a = attention(
            w, f"{L}.self_attn", c, i, layer_type=(c.get("layer_types") or [None] * 99)[i], window=win
        )
        if nope and c.get("sliding_window") and win is None:
            a.freq = np.zeros_like(a.freq)
        layers.append(
            Layer(
                [
                    Branch([a], None, rms(w, f"{L}.post_attention_layernorm", c)),
                    Branch([gated(w, f"{L}.mlp", c)], None, rms(w, f"{L}.post_feedforward_layernorm", c)),
                ]
            )
        )
    return Decoder(w("embed_tokens.weight"), layers, rms(w, "norm", c), head(w, c)), w


olmo3 = exaone4 = olmo2


def glm4(c, W):
    w = Ckpt(c, W)
    layers = []
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        layers.append(
            Layer(
                [
                    Branch(
                        [attention(w, f"{L}.self_attn", c, i, interleaved=True)],
                        rms(w, f"{L}.input_layernorm", c),
                        rms(w, f"{L}.post_self_attn_layernorm", c),
                    ),
                    Branch(
                        [fused_gated(w, f"{L}.mlp", c)],
                        rms(w, f"{L}.post_attention_layernorm", c),
                        rms(w, f"{L}.post_mlp_layernorm", c),
                    ),
                ]
            )
        )
    return Decoder(w("embed_tokens.weight"), layers, rms(w, "norm", c), head(w, c)), w


def bitnet(c, W):
    w = Ckpt(c, W)
    layers = []
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        a = attention(w, f"{L}.self_attn", c, i, sub_norm=rms(w, f"{L}.self_attn.attn_sub_norm", c))
        m = gated(w, f"{L}.mlp", c, sub_norm=rms(w, f"{L}.mlp.ffn_sub_norm", c))
        layers.append(
            Layer(
                [
                    Branch([a], rms(w, f"{L}.input_layernorm", c)),
                    Branch([m], rms(w, f"{L}.post_attention_layernorm", c)),
                ]
            )
        )
    return Decoder(w("embed_tokens.weight"), layers, rms(w, "norm", c), head(w, c)), w


def nanochat(c, W):
    w = Ckpt(c, W)
    layers = []
    one = Norm(1.0, c.get("rms_norm_eps", 1e-6))
    h = c["num_attention_heads"]
    g = c.get("num_key_value_heads") or h
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        a = attention(w, f"{L}.self_attn", c, i)
        a.freq = -a.freq  # turns the other way
        a.q_norm, a.k_norm, a.size, a.eps = (
            np.ones(h * a.d),
            np.ones(g * a.d),
            a.d,
            one.eps,
        )  # weightless: before or after the rotation is the same
        layers.append(
            Layer(
                [
                    Branch([a], one),
                    Branch([Mlp(w.lin(f"{L}.mlp.fc1"), w.lin(f"{L}.mlp.fc2"), c["hidden_act"])], one),
                ]
            )
        )
    E = w("embed_tokens.weight")
    return Decoder(
        one(E), layers, one, head(w, c), softcap=c.get("final_logit_softcapping")
    ), w  # the first norm: into the table


def apertus(c, W):
    w = Ckpt(c, W)
    layers = []
    for i in range(c["num_hidden_layers"]):
        L = f"layers.{i}"
        ap, an, beta, e = (w(f"{L}.mlp.act_fn.{n}") for n in ("alpha_p", "alpha_n", "beta", "eps"))
        sp = lambda x: np.logaddexp(0, x)

        def xielu(x, p=sp(ap), n=beta + sp(an), b=beta, e=e):
            return np.where(x > 0, p * x * x + b * x, (np.expm1(np.minimum(x, e)) - x) * n + b * x)

        layers.append(
            Layer(
                [
                    Branch([attention(w, f"{L}.self_attn", c, i)], rms(w, f"{L}.attention_layernorm", c)),
                    Branch(
                        [Mlp(w.lin(f"{L}.mlp.up_proj"), w.lin(f"{L}.mlp.down_proj"), "", xielu=xielu)],
                        rms(w, f"{L}.feedforward_layernorm", c),
                    ),
                ]
            )
        )
    return Decoder(w("embed_tokens.weight"), layers, rms(w, "norm", c), head(w, c)), w


def minicpm(c, W):
    """As its authors' modelling file and llama.cpp have it; transformers has no class of it."""
    decoder, w = llama(c, W)
    depth = c["scale_depth"] / math.sqrt(c["num_hidden_layers"])
    for layer in decoder.layers:
        mixer, mlp = (branch.bodies[0] for branch in layer.branches)
        mixer.o, mlp.down = scaled(mixer.o, depth), scaled(mlp.down, depth)
    decoder.multiplier = c["scale_emb"]
    decoder.head = scaled(decoder.head, c["dim_model_base"] / c["hidden_size"])
    return decoder, w


def exaone(c, W):
    """EXAONE 3 and 3.5, as its authors' modelling file and llama.cpp have it."""
    llama_names = {
        "transformer.wte": "model.embed_tokens",
        "transformer.ln_f": "model.norm",
        "transformer.h": "model.layers",
        "attn.attention.out_proj": "self_attn.o_proj",
        "attn.attention": "self_attn",
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        "mlp.c_fc_0": "mlp.gate_proj",
        "mlp.c_fc_1": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    }

    def renamed(name):
        for theirs, ours in llama_names.items():
            name = name.replace(theirs, ours)
        return name

    names = {renamed(name): name for name in W}
    keys = {"num_hidden_layers": c["num_layers"], "hidden_act": c["activation_function"]}
    keys["rms_norm_eps"] = c["layer_norm_epsilon"]
    decoder, w = llama(c | keys, {ours: W[theirs] for ours, theirs in names.items()})
    w.used = {names[name] for name in w.used}
    return decoder, w
