"""The functions of decoders in float64: norms, activations, rotation, attention, convolution, recurrence,
routing.

x [T, k]. No architecture is named here.
"""

from math import erf

import numpy as np

_erf = np.vectorize(erf)


def norm(x, w, eps):  # Norm (exists)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w


def centered_norm(x, w, eps):  # CenteredNorm: LayerNorm without bias (the bias is folded into the reader)
    return norm(x - x.mean(-1, keepdims=True), w, eps)


def head_norm(x, w, size, eps, centered=False):  # HeadNorm: groups of `size` elements; w as wide as x
    y = x.reshape(*x.shape[:-1], -1, size)
    one = np.ones(size)
    y = (centered_norm if centered else norm)(y, one, eps)
    return y.reshape(x.shape) * w


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


ACT = {
    "silu": silu,
    "swish": silu,
    "gelu_tanh": lambda x: (
        x * sigmoid(2 * 0.7978845608028654 * (x + 0.044715 * x**3))
    ),  # = 0.5 x (1 + tanh ..): one exp
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": sigmoid,
}
ALIAS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu_squared": "relu2",
}


def act(name):
    return ACT[ALIAS.get(name, name)]


def rotate(x, cos, sin):  # as RotaryAttention does it: halves
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def table(T, f):
    angle = np.arange(T)[:, None] * f.astype(np.float64)
    return np.cos(angle), np.sin(angle)


def attention(q, k, v, scale, window=None, softcap=None, sinks=None, bias=None, causal=True):
    """q [h, T, d], k [g, S, d], v [g, S, dv] -> [T, h*dv]"""
    h, T, _ = q.shape
    g, S, _ = k.shape
    k, v = np.repeat(k, h // g, 0), np.repeat(v, h // g, 0)
    s = q @ k.swapaxes(1, 2) * scale
    if softcap:
        s = softcap * np.tanh(s / softcap)
    if bias is not None:
        s = s + bias
    if causal:
        i, j = np.arange(T)[:, None], np.arange(S)[None]
        seen = j <= i
        if window:
            seen &= j > i - window
        s = np.where(seen, s, -np.inf)
    top = s.max(-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    e = np.exp(s - top)
    total = e.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - top)
    return (e / total @ v).transpose(1, 0, 2).reshape(T, -1)


def conv(x, w, b=None):  # CausalConv: depthwise, x [T, c], w [c, L]; state: the last L-1 rows
    L = w.shape[1]
    p = np.concatenate([np.zeros((L - 1, x.shape[1])), x])
    y = sum(p[i : i + len(x)] * w[:, i] for i in range(L))
    return y if b is None else y + b


def linear_attention(q, k, v, g, beta=None):
    """LinearAttention: S = e^g S; S += k (beta (v - k S)) [delta] or k v; y = q S.  q,k [T,H,dk] v [T,H,dv] g [T,H]"""
    T, H, dk = k.shape
    S = np.zeros((H, dk, v.shape[2]))
    out = np.empty(v.shape)
    for t in range(T):
        S = S * np.exp(g[t])[:, None, None]
        u = v[t]
        if beta is not None:
            u = (u - np.einsum("hk,hkv->hv", k[t], S)) * beta[t][:, None]
        S = S + k[t][:, :, None] * u[:, None, :]
        out[t] = np.einsum("hk,hkv->hv", q[t], S)
    return out


def route(logits, k, kind, select=None, normalize=True, scale=1.0, groups=1, keep=1, floor=1e-20):
    """-> indices [T,k], weights [T,k]; kind: softmax | sigmoid | topk_softmax"""
    soft = lambda z: (lambda e: e / e.sum(-1, keepdims=True))(np.exp(z - z.max(-1, keepdims=True)))
    p = {"softmax": soft, "sigmoid": sigmoid, "topk_softmax": lambda z: z}[kind](logits)
    choose = p if select is None else p + select
    if groups > 1:
        gs = np.sort(choose.reshape(len(p), groups, -1), -1)[..., -2:].sum(-1)
        kept = np.argsort(-gs, -1)[:, :keep]
        m = np.zeros((len(p), groups), bool)
        np.put_along_axis(m, kept, True, 1)
        choose = np.where(np.repeat(m, p.shape[1] // groups, 1), choose, -np.inf)
    idx = np.argsort(-choose, -1, kind="stable")[:, :k]
    w = np.take_along_axis(p, idx, 1)
    if kind == "topk_softmax":
        w = soft(w)
    elif normalize:
        w = w / np.maximum(w.sum(-1, keepdims=True), floor)
    return idx, w * scale


def clamped_swiglu(gate, up, alpha=1.702, limit=7.0):  # gpt-oss
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return (up + 1) * gate * sigmoid(alpha * gate)
