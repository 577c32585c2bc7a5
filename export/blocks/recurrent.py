"""Mixers whose state does not grow: short convolutions, gated delta nets, Mamba 2.

What the gates of a recurrence are made of is a product of its own, of a few rows: it may have more bits than
the large one, and has the same input.

Legend: h heads, j key heads, k and v columns of a key and of a value, c channels, L taps.
"""

from __future__ import annotations

import functools

import numpy as np

from flatlm.export.layers import DeltaNet, Mamba2, ShortConv
from flatlm.export.weights import Affine, Weight, zeros
from flatlm.runtime.format.graph import Attribute, Tensor

from .builder import Builder

_EUCLIDEAN = 1e-6  # what the models add to the sum of squares of a query or key


def short_conv(b: Builder, x: str, body: ShortConv) -> str:
    """The normed stream → what a gated convolution adds to it.

    x ─ in ─ parts ─┬─ b ─┬─ gated ─ conv ─┬─ mixed ─ out
                    ├─ u ─┘                │
                    └─ c ──────────────────┘
    """
    hidden = b.config.hidden_size
    whole = b.affine("in", 3 * hidden, hidden, bias=body.bias).reading(b.shift)
    given, after, u = b.parts("parts", b.linear("in", x, whole), dict.fromkeys("bcu", hidden))
    conv = _conv(b, b.emit("Mul", "gated", (given, u)), hidden, body.taps, body.bias)
    return _out(b, b.emit("Mul", "mixed", (after, conv)), hidden, body.bias)


def delta_net(b: Builder, x: str, body: DeltaNet) -> str:
    """The normed stream → what linear attention by the gated delta rule adds to it.

    x ─┬─ in ─ parts ─┬─ qkv ─ conv ─ convolved ─┬─ qk ─ qk_norm ─ q, k ─┬─ attend ─ head_norm ─┬─ gated ─ out
       │              │                          └─ v ───────────────────┤                      │
       │              └─ z ──────────────────────────────────────────────┼──────────────────────┘
       └─ gates ─ dt, beta ──────────────────────────────────────────────┘
    """
    keys, width = body.key_heads * body.key_size, body.heads * body.value_size
    rows = _fused(b, body) if body.fused else _apart(b, body)
    whole, gates = ([part.reading(b.shift) for part in parts] for parts in rows)
    qkv, z = b.parts("parts", b.linear("in", x, *whole), {"qkv": 2 * keys + width, "z": width})
    per_head = dict.fromkeys(("dt", "beta"), body.heads)
    dt, beta = b.parts("gate_parts", b.linear("gates", x, *gates), per_head)
    conv = _conv(b, qkv, 2 * keys + width, body.taps, bias=False, act="silu")
    qk, v = b.parts("convolved", conv, {"qk": 2 * keys, "v": width})
    scale = np.repeat(np.array([1 / body.key_size, body.key_size**-0.5], np.float32), keys)
    constant = f"{b.name('qk_norm')}.weight"
    b.made.constants[constant] = Tensor.of(scale)
    epsilon = _EUCLIDEAN / body.key_size
    normed = b.emit("GroupedNorm", "qk_norm", (qk, constant), size=body.key_size, epsilon=epsilon)
    q, k = b.parts("normed", normed, {"q": keys, "k": keys})
    y = _attend(
        b, (q, k, v, dt, beta), body.heads, body.key_heads, body.key_size, body.value_size, "gated_delta"
    )
    weight = b.weight("head_norm", body.value_size).repeated(body.heads)
    y = b.emit("OutputGate", "gated", (_grouped(b, "head_norm", y, weight, body.value_size), z), act="silu")
    return _out(b, y, width, bias=False)


def mamba2(b: Builder, x: str, body: Mamba2) -> str:
    """The normed stream → what linear attention by the gated rule adds to it.

    x ─┬─ in ─ parts ─┬─ xbc ─ conv ─ convolved ─ x, b, c ─ attend ─┬─ gated ─ norm ─ out
       │              └─ z ──────────────────────────────────┼──────┘
       └─ gates (dt) ────────────────────────────────────────┘
    """
    inner, keys, hidden = body.heads * body.head_size, body.groups * body.state_size, b.config.hidden_size
    counts = (inner, inner, keys, keys, body.heads)
    factors = np.repeat(np.array(body.factors, np.float32), counts)
    stored = b.affine("in", sum(counts), hidden, bias=body.bias)
    scaled = Affine(
        stored.weight.scaled(factors * body.scale_in), stored.bias and stored.bias.scaled(factors)
    )
    whole, large = scaled.reading(b.shift), sum(counts) - body.heads
    product = b.linear("in", x, whole.each(lambda w: w.rows(slice(0, large))))
    z, xbc = b.parts("parts", product, {"z": inner, "xbc": inner + 2 * keys})
    dt = b.linear("gates", x, whole.each(lambda w: w.rows(slice(large, None))))
    conv = _conv(b, xbc, inner + 2 * keys, body.taps, body.conv_bias, act="silu")
    v, k, q = b.parts("convolved", conv, {"x": inner, "b": keys, "c": keys})
    options = {"least_step": body.least_step} if body.least_step else {}
    y = _attend(
        b, (q, k, v, dt), body.heads, body.groups, body.state_size, body.head_size, "gated", **options
    )
    size = inner // body.groups
    if body.norm and body.norm_first:
        y = _grouped(b, "norm_inner", y, b.weight("norm_inner", inner), size)
    y = b.emit("OutputGate", "gated", (y, z), act="silu")
    if body.norm and not body.norm_first:
        y = _grouped(b, "norm_inner", y, b.weight("norm_inner", inner), size)
    return _out(b, y, inner, body.bias)


def _apart(b: Builder, body: DeltaNet) -> tuple[list[Affine], list[Affine]]:
    """What makes q, k, v and z; what makes dt and beta."""
    keys, width, hidden = body.key_heads * body.key_size, body.heads * body.value_size, b.config.hidden_size
    rows = {"qkv": 2 * keys + width, "z": width, "dt": body.heads, "beta": body.heads}
    qkv, z, dt, beta = (b.affine(part, count, hidden) for part, count in rows.items())
    return [qkv, z], [dt, beta]


def _fused(b: Builder, body: DeltaNet) -> tuple[list[Affine], list[Affine]]:
    """The same where rows of a key head lie together: q, k, v and z in a matrix, beta and dt in another."""
    shared, hidden = body.heads // body.key_heads, b.config.hidden_size
    sizes = [body.key_size, body.key_size, shared * body.value_size, shared * body.value_size]
    large = b.affine("qkvz", body.key_heads * sum(sizes), hidden)
    small = b.affine("ba", 2 * body.heads, hidden)
    q, k, v, z = _of_key_heads(large, body.key_heads, sizes)
    beta, dt = _of_key_heads(small, body.key_heads, [shared, shared])
    return [q, k, v, z], [dt, beta]


def _of_key_heads(whole: Affine, heads: int, sizes: list[int]) -> list[Affine]:
    """Rows that lie by key head, in parts of these sizes → each part of all heads."""
    rows, ends = np.arange(heads * sum(sizes)).reshape(heads, -1), np.cumsum(sizes)[:-1]
    chosen = (part.reshape(-1) for part in np.split(rows, ends, axis=1))
    return [whole.each(functools.partial(Weight.rows, chosen=part)) for part in chosen]


def _conv(b: Builder, x: str, channels: int, taps: int, bias: bool, act: str = "") -> str:
    past, present = b.fixed_state("conv")
    name = b.name("conv")
    weight = b.constant(f"{name}.weight", b.weight("conv", channels, taps))
    stored = b.weight("conv", channels, kind=".bias") if bias else zeros(channels)
    inputs = (x, weight, b.constant(f"{name}.bias", stored), past)
    attrs: dict[str, Attribute] = {"channels": channels, "taps": taps, **({"act": act} if act else {})}
    return b.emit("CausalConv", "conv", inputs, (name, present), **attrs)


def _attend(
    b: Builder, streams: tuple[str, ...], h: int, j: int, k: int, v: int, rule: str, **options: Attribute
) -> str:
    past, present = b.fixed_state("state")
    name = b.name("attend")
    weights = {
        "dt_bias": b.weight("dt_bias", h, kind=""),
        "decay": b.weight("decay", h, kind="").mapped(lambda w: -np.exp(w)),
        **({"skip": b.weight("skip", h, kind="")} if rule == "gated" else {}),
    }
    constants = [b.constant(f"{name}.{part}", weight) for part, weight in weights.items()]
    sizes = {"num_heads": h, "key_heads": j, "key_size": k, "value_size": v}
    inputs = (*streams, *constants, past)
    return b.emit("LinearAttention", "attend", inputs, (name, present), update_rule=rule, **sizes, **options)


def _grouped(b: Builder, part: str, x: str, weight: Weight, size: int) -> str:
    constant = b.constant(f"{b.name(part)}.weight", weight)
    return b.emit("GroupedNorm", part, (x, constant), size=size, epsilon=b.config.epsilon)


def _out(b: Builder, x: str, width: int, bias: bool) -> str:
    out = b.affine("out", b.config.hidden_size, width, bias=bias)
    return b.linear("out", x, out.each(lambda w: w.scaled(b.scale)))
