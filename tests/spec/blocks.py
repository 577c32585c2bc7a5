"""A decoder made of options: every architecture is a filling-in of these dataclasses."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.spec import functions as fn


def lin(x, W, b=None):
    y = x @ W.T
    return y if b is None else y + b


@dataclass
class Norm:
    w: Any
    eps: float
    centered: bool = False

    def __call__(self, x):
        return (fn.centered_norm if self.centered else fn.norm)(x, self.w, self.eps)


@dataclass
class Attention:
    q: Any
    k: Any
    v: Any
    o: Any  # (W, b); k and v None: another layer's (source)
    h: int
    g: int
    d: int
    scale: float
    freq: Any = None  # [d/2], zeros where nothing turns; None: no rotation at all
    dv: int = 0
    window: Any = None
    softcap: Any = None
    sinks: Any = None
    slopes: Any = None
    q_norm: Any = None
    k_norm: Any = None
    v_norm: bool = False
    size: int = 0
    eps: float = 1e-6
    norm_last: bool = False
    centered: bool = False
    gate: Any = None
    gate_heads: bool = False  # (W, b): sigmoid gate of the output, per element or per head
    sub_norm: Any = None
    source: Any = None

    def __call__(self, x, ctx, i):
        T = len(x)
        heads = lambda y, n, d: y.reshape(T, n, d).transpose(1, 0, 2)
        turn = (lambda y: fn.rotate(y, *fn.table(T, self.freq))) if self.freq is not None else (lambda y: y)

        def prepared(y, w, n):
            if w is not None and not self.norm_last:
                y = fn.head_norm(
                    y, w, self.size or self.d if self.size != -1 else y.shape[-1], self.eps, self.centered
                )
            y = turn(heads(y, n, self.d))
            if w is not None and self.norm_last:
                y = fn.head_norm(y.transpose(1, 0, 2).reshape(T, -1), w, self.d, self.eps)
                y = heads(y, n, self.d)
            return y

        q = prepared(lin(x, *self.q), self.q_norm, self.h)
        if self.source is None:
            k, v = prepared(lin(x, *self.k), self.k_norm, self.g), lin(x, *self.v)
            dv = self.dv or self.d
            if self.v_norm:
                v = fn.head_norm(v, np.ones(v.shape[-1]), dv, self.eps)
            v = heads(v, self.g, dv)
        else:
            k, v = ctx["kv"][self.source]
        ctx["kv"][i] = k, v
        bias = None
        if self.slopes is not None:
            bias = self.slopes[:, None, None] * (np.arange(T)[None] - np.arange(T)[:, None])[None]
        y = fn.attention(q, k, v, self.scale, self.window, self.softcap, self.sinks, bias)
        if self.gate is not None:
            s = fn.sigmoid(lin(x, *self.gate))
            y = y * (np.repeat(s, y.shape[1] // self.h, 1) if self.gate_heads else s)
        if self.sub_norm is not None:
            y = self.sub_norm(y)
        return lin(y, *self.o)


@dataclass
class ShortConv:  # LFM2
    inn: Any
    w: Any
    b: Any
    out: Any

    def __call__(self, x, ctx, i):
        B, C, u = np.split(lin(x, *self.inn), 3, -1)
        return lin(C * fn.conv(B * u, self.w, self.b), *self.out)


@dataclass
class Delta:  # gated delta net
    qkv: Any
    z: Any
    b: Any
    a: Any
    conv: Any
    A: Any
    dt: Any
    norm: Any
    eps: float
    out: Any
    hk: int
    hv: int
    dk: int
    dv: int

    def __call__(self, x, ctx, i):
        T = len(x)
        y = fn.silu(fn.conv(lin(x, self.qkv), self.conv))
        q, k, v = np.split(y, [self.hk * self.dk, 2 * self.hk * self.dk], -1)
        l2 = lambda u: (lambda w: w / np.sqrt((w * w).sum(-1, keepdims=True) + 1e-6))(
            u.reshape(T, self.hk, self.dk)
        )
        r = self.hv // self.hk
        q, k = np.repeat(l2(q), r, 1) * self.dk**-0.5, np.repeat(l2(k), r, 1)
        g = self.A * np.logaddexp(0, lin(x, self.a) + self.dt)  # A = -exp(A_log), folded
        y = fn.linear_attention(q, k, v.reshape(T, self.hv, self.dv), g, fn.sigmoid(lin(x, self.b)))
        y = fn.head_norm(y.reshape(T, -1), np.tile(self.norm, self.hv), self.dv, self.eps)
        return lin(y * fn.silu(lin(x, self.z)), self.out)


@dataclass
class Mamba2:
    inn: Any
    conv: Any
    conv_b: Any
    A: Any
    dt: Any
    D: Any
    norm: Any
    eps: float
    out: Any
    h: int
    d: int
    n: int
    groups: int
    norm_size: int = 0
    gate_first: bool = True
    dt_min: float = 0.0

    def __call__(self, x, ctx, i):
        T = len(x)
        inner = self.h * self.d
        gn = self.groups * self.n
        y = lin(x, *self.inn)
        z, y, dt = np.split(y, [inner, 2 * inner + 2 * gn], -1)
        y = fn.silu(fn.conv(y, self.conv, self.conv_b))
        u, B, C = np.split(y, [inner, inner + gn], -1)
        r = self.h // self.groups
        B, C = (np.repeat(m.reshape(T, self.groups, self.n), r, 1) for m in (B, C))
        u = u.reshape(T, self.h, self.d)
        dt = np.maximum(np.logaddexp(0, dt + self.dt), self.dt_min)
        s = fn.linear_attention(C, B, u * dt[..., None], self.A * dt) + u * self.D[:, None]
        s = s.reshape(T, inner)
        if self.norm is None:
            s = s * fn.silu(z)
        elif self.gate_first:
            s = fn.head_norm(s * fn.silu(z), self.norm, self.norm_size, self.eps)
        else:
            s = fn.head_norm(s, self.norm, self.norm_size, self.eps) * fn.silu(z)
        return lin(s, *self.out)


@dataclass
class Mlp:
    up: Any
    down: Any
    act: str
    gate: Any = None
    sub_norm: Any = None
    xielu: Any = None

    def __call__(self, x, ctx=None, i=None):
        u = lin(x, *self.up)
        if self.xielu is not None:
            y = self.xielu(u)
        else:
            y = fn.act(self.act)(lin(x, *self.gate)) * u if self.gate is not None else fn.act(self.act)(u)
        if self.sub_norm is not None:
            y = self.sub_norm(y)
        return lin(y, *self.down)


@dataclass
class Moe:
    router: Any
    k: int
    kind: str
    up: Any
    down: Any
    act: str
    gate: Any = None
    up_b: Any = None
    gate_b: Any = None
    down_b: Any = None
    clamped: bool = False
    select: Any = None
    normalize: bool = True
    scale: float = 1.0
    groups: int = 1
    keep: int = 1
    floor: float = 1e-20
    shared: Any = None
    shared_gate: Any = None
    expert_scale: Any = None
    own_router: Any = None
    latent: Any = None

    def __call__(self, x, ctx=None, i=None, router_x=None):
        r = x if router_x is None else router_x
        if self.own_router is not None:
            r = self.own_router(r)
        idx, w = fn.route(
            lin(r, *self.router),
            self.k,
            self.kind,
            self.select,
            self.normalize,
            self.scale,
            self.groups,
            self.keep,
            self.floor,
        )
        if self.expert_scale is not None:
            w = w * self.expert_scale[idx]
        u0 = lin(x, *self.latent[0]) if self.latent else x
        y = np.zeros((len(x), self.down.shape[1]))
        for t in range(len(x)):
            for e, s in zip(idx[t], w[t]):
                u = u0[t] @ self.up[e].T + (0 if self.up_b is None else self.up_b[e])
                if self.gate is not None:
                    G = u0[t] @ self.gate[e].T + (0 if self.gate_b is None else self.gate_b[e])
                    u = fn.clamped_swiglu(G, u) if self.clamped else fn.act(self.act)(G) * u
                else:
                    u = fn.act(self.act)(u)
                y[t] += s * (u @ self.down[e].T + (0 if self.down_b is None else self.down_b[e]))
        if self.latent:
            y = lin(y, *self.latent[1])
        if self.shared is not None:
            z = self.shared(x)
            y = y + (z if self.shared_gate is None else z * fn.sigmoid(lin(x, *self.shared_gate)))
        return y


@dataclass
class Branch:
    """stream += post(body(pre(stream))). Several bodies add up (falcon-h1)."""

    bodies: list
    pre: Any = None
    post: Any = None

    def __call__(self, x, ctx, i):
        n = self.pre(x) if self.pre else x
        y = sum(b(n, ctx, i) for b in self.bodies)
        return self.post(y) if self.post else y


@dataclass
class PerLayer:  # gemma 4: gelu(gate x) * embedding of this layer
    gate: Any
    proj: Any
    post: Any

    def __call__(self, x, ctx, i):
        return self.post(lin(fn.act("gelu_tanh")(lin(x, self.gate)) * ctx["per_layer"][:, i], self.proj))


@dataclass
class Layer:
    branches: list
    parallel: bool = False

    def __call__(self, x, ctx, i):
        if self.parallel:
            return x + sum(b(x, ctx, i) for b in self.branches)
        for b in self.branches:
            x = x + b(x, ctx, i)
        return x


@dataclass
class Decoder:
    embed: Any
    layers: list
    norm: Any
    head: Any  # head (W, b)
    multiplier: float = 1.0
    positions: Any = None
    embed_norm: Any = None
    softcap: Any = None
    per_layer: Any = None
    project_in: Any = None
    project_out: Any = None

    def __call__(self, ids):
        x = self.embed[ids] * self.multiplier
        if self.project_in is not None:
            x = lin(x, self.project_in)
        if self.positions is not None:
            x = x + self.positions[: len(ids)]
        if self.embed_norm:
            x = self.embed_norm(x)
        ctx = {"kv": {}}
        if self.per_layer:
            ctx["per_layer"] = self.per_layer(ids, x)
        for i, layer in enumerate(self.layers):
            x = layer(x, ctx, i)
        if self.norm:
            x = self.norm(x)
        if self.project_out is not None:
            x = lin(x, self.project_out)
        y = lin(x, *self.head)
        return self.softcap * np.tanh(y / self.softcap) if self.softcap else y
