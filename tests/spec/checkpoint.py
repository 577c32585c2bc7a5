"""A checkpoint's weights by name, and the folds of export: permuted rows, rotary factors, biases of norms."""

from __future__ import annotations

import math

import numpy as np

from tests.spec.blocks import Attention, Mlp, Moe, Norm


class Ckpt:
    def __init__(self, c, W, prefix="model."):
        self.c, self.W, self.p, self.used = c, W, prefix, set()

    def __call__(self, name, full=False):
        n = name if full else self.p + name
        self.used.add(n)
        return self.W[n].astype(np.float64)

    def has(self, name, full=False):
        return (name if full else self.p + name) in self.W

    def lin(self, name):  # (W, b) with the bias the checkpoint has
        return self(name + ".weight"), (self(name + ".bias") if self.has(name + ".bias") else None)


# ---- folds (export only)
def fold_beta(wb, beta):
    """LayerNorm's bias into the linear that reads it."""
    W, b = wb
    return (W, (0 if b is None else b) + W @ beta) if beta is not None else wb


def scaled(wb, s):
    return wb[0] * s, None if wb[1] is None else wb[1] * s


def pairs(d, rot, interleaved):
    first, second = (
        (np.arange(0, rot, 2), np.arange(1, rot, 2))
        if interleaved
        else (np.arange(rot // 2), np.arange(rot // 2, rot))
    )
    rest = np.arange(rot, d)
    m = len(rest) // 2
    return np.concatenate([first, rest[:m], second, rest[m:]])


def permuted(wb, heads, d, order):
    rows = (np.arange(heads)[:, None] * d + order[None]).reshape(-1)
    return wb[0][rows], None if wb[1] is None else wb[1][rows]


# ---- rotary
def rope_of(c, layer_type=None):
    r = c.get("rope_parameters") or {}
    if layer_type and layer_type in r:
        r = r[layer_type]
    return r


def inverse_frequency(r, d, c, context):
    """-> (freq [rot/2], rot, attention_factor)"""
    kind = r.get("rope_type", "default")
    base = float(r["rope_theta"])
    part = r.get("partial_rotary_factor") or 1.0
    if kind == "proportional":
        rot = 2 * int(part * d // 2)
        f = base ** -(np.arange(0, rot, 2) / d)
        return np.concatenate([f, np.zeros(d // 2 - rot // 2)]) / r.get("factor", 1.0), d, 1.0
    rot = int(d * part)
    f = base ** -(np.arange(0, rot, 2) / rot)
    m = 1.0
    if kind == "dynamic" and r.get("alpha"):
        f = (base * r["alpha"] ** (rot / (rot - 2))) ** -(np.arange(0, rot, 2) / rot)
    elif kind in ("linear",):
        f = f / r["factor"]
    elif kind == "llama3":
        turns = r["original_max_position_embeddings"] * f / (2 * math.pi)
        keep = np.clip((turns - r["low_freq_factor"]) / (r["high_freq_factor"] - r["low_freq_factor"]), 0, 1)
        f = f * (keep + (1 - keep) / r["factor"])
    elif kind == "longrope":
        orig = r["original_max_position_embeddings"]
        factor = r.get("factor") or c["max_position_embeddings"] / orig
        f = f / np.array(r["long_factor"] if context > orig else r["short_factor"])
        m = r.get("attention_factor") or (
            1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(orig))
        )
    elif kind == "yarn":
        s, orig = r["factor"], r["original_max_position_embeddings"]
        get = lambda k, v: r.get(k) or v
        scale = lambda x, ms=1.0: 1.0 if x <= 1 else 0.1 * ms * math.log(x) + 1.0
        m = r.get("attention_factor")
        if m is None:
            m = (
                scale(s, r["mscale"]) / scale(s, r["mscale_all_dim"])
                if r.get("mscale") and r.get("mscale_all_dim")
                else scale(s)
            )
        dim = lambda n: rot * math.log(orig / (n * 2 * math.pi)) / (2 * math.log(base))
        lo, hi = dim(get("beta_fast", 32)), dim(get("beta_slow", 1))
        if r.get("truncate", True):
            lo, hi = math.floor(lo), math.ceil(hi)
        lo, hi = max(lo, 0), min(hi, rot - 1)
        if lo == hi:
            hi += 0.001
        ramp = np.clip((np.arange(rot // 2) - lo) / (hi - lo), 0, 1)
        f = f / s * ramp + f * (1 - ramp)
    return f, rot, m


def attention(
    w,
    at,
    c,
    i,
    names="qkvo",
    h=None,
    g=None,
    d=None,
    layer_type=None,
    interleaved=False,
    rope=True,
    beta=None,
    qk=("q_norm", "k_norm"),
    shift=0.0,
    scale=None,
    context=None,
    fused=None,
    kv=True,
    **more,
):
    """The usual attention of layer i, weights below `at`. Rows are permuted and rotary factors folded here."""
    h = h or c["num_attention_heads"]
    g = g or c.get("num_key_value_heads") or h
    d = d or c.get("head_dim") or c["hidden_size"] // h
    full = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"} if names == "qkvo" else names
    if fused is not None:
        q, k, v = fused
    else:
        q = w.lin(f"{at}.{full['q']}")
        k, v = (w.lin(f"{at}.{full[n]}") for n in "kv") if kv else (None, None)
    o = w.lin(f"{at}.{full['o']}")
    q, k, v = (fold_beta(x, beta) if x is not None else None for x in (q, k, v))
    eps = c.get("rms_norm_eps") or c.get("norm_eps") or c.get("layer_norm_eps") or 1e-6
    qn = kn = None
    size = d
    if qk and w.has(f"{at}.{qk[0]}.weight"):
        qn = w(f"{at}.{qk[0]}.weight") + shift
        kn = w(f"{at}.{qk[1]}.weight") + shift if kv else None
        if len(qn) == d:
            qn, kn = np.tile(qn, h), np.tile(kn, g) if kn is not None else None
        else:
            size = -1
    scale = d**-0.5 if scale is None else scale
    freq = None
    if rope:
        f, rot, m = inverse_frequency(rope_of(c, layer_type), d, c, context or c.get("context", 14))
        freq = np.zeros(d // 2)
        freq[: len(f)] = f
        order = pairs(d, rot, interleaved)
        q = permuted(q, h, d, order)
        if k is not None:
            k = permuted(k, g, d, order)
        if qn is not None:
            qn = qn[(np.arange(h)[:, None] * d + order).reshape(-1)]
            if kn is not None:
                kn = kn[(np.arange(g)[:, None] * d + order).reshape(-1)]
        if m != 1:  # attention_factor: where all turns, into the scale; else into the rows that turn
            if rot == d:
                scale *= m * m
            else:
                turning = np.where(order < rot, m, 1.0)
                q = (
                    q[0] * np.tile(turning, h)[:, None],
                    None if q[1] is None else q[1] * np.tile(turning, h),
                )
                k = (
                    k[0] * np.tile(turning, g)[:, None],
                    None if k[1] is None else k[1] * np.tile(turning, g),
                )
    return Attention(q, k, v, o, h, g, d, scale, freq, q_norm=qn, k_norm=kn, size=size, eps=eps, **more)


def window(c, i, kinds=("sliding_attention",)):
    if c.get("layer_types"):
        return c.get("sliding_window") if c["layer_types"][i] in kinds else None
    return c.get("sliding_window")


def rms(w, name, c, shift=0.0, eps=None):
    return Norm(
        w(name + ".weight") + shift,
        eps or c.get("rms_norm_eps") or c.get("norm_eps") or c.get("layer_norm_epsilon") or 1e-6,
    )


def layer_norm(w, name, eps):
    return Norm(w(name + ".weight"), eps, True), (w(name + ".bias") if w.has(name + ".bias") else None)


def gated(w, at, c, act=None, names=("gate_proj", "up_proj", "down_proj"), **more):
    return Mlp(
        w.lin(f"{at}.{names[1]}"),
        w.lin(f"{at}.{names[2]}"),
        act or c.get("hidden_act") or c.get("hidden_activation"),
        w.lin(f"{at}.{names[0]}"),
        **more,
    )


def fused_gated(w, at, c, names=("gate_up_proj", "down_proj")):
    W, b = w.lin(f"{at}.{names[0]}")
    n = len(W) // 2
    part = lambda s: (W[s], None if b is None else b[s])
    return Mlp(part(slice(n, None)), w.lin(f"{at}.{names[1]}"), c["hidden_act"], part(slice(n)))


def head(w, c, embed="embed_tokens.weight", lm="lm_head.weight", scale=1.0, beta=None):
    tied = c.get("tie_word_embeddings", True) or not w.has(lm, True)
    H = w(embed) if tied else w(lm, True)
    b = w("lm_head.bias", True) if w.has("lm_head.bias", True) else None
    if beta is not None:
        b = (0 if b is None else b) + H @ beta
    return H * scale, None if b is None else b * scale


def moe(
    w,
    at,
    c,
    experts="experts",
    router="gate",
    kind="softmax",
    I=None,
    fused=True,
    names=("gate_proj", "up_proj", "down_proj"),
    **more,
):
    E = c.get("num_experts") or c.get("num_local_experts") or c.get("n_routed_experts")
    if w.has(f"{at}.{experts}.gate_up_proj"):
        gu, dn = w(f"{at}.{experts}.gate_up_proj"), w(f"{at}.{experts}.down_proj")
        n = gu.shape[1] // 2
        gate, up, down = gu[:, :n], gu[:, n:], dn
    else:
        gate, up, down = (np.stack([w(f"{at}.{experts}.{e}.{n}.weight") for e in range(E)]) for n in names)
    return Moe(
        (w(f"{at}.{router}.weight"), w(f"{at}.{router}.bias") if w.has(f"{at}.{router}.bias") else None),
        c["num_experts_per_tok"],
        kind,
        up,
        down,
        c.get("hidden_act") or "silu",
        gate,
        **more,
    )
