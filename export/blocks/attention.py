"""Attention over a K/V cache: weights of q, k, v and out → nodes.

Legend: B batch, T tokens, h heads, g key/value heads, d head size.
"""

from __future__ import annotations

import functools

import numpy as np

from flatlm.export.layers import Attention, QkNorm
from flatlm.export.rope import Rotary
from flatlm.export.weights import Affine, Weight, ones, stack
from flatlm.runtime.format.graph import Attribute, Tensor

from .builder import Builder


def attention(b: Builder, x: str, body: Attention) -> str:
    """The normed stream → what attention adds to it.

    x ─ qkv [B, T, (h + 2g)·d] ─ heads ─┬─ q ─ rotate_q ───────── attend [B, T, h·d] ─ out
                                        ├─ k ─ rotate_k ─ append ─┘
                                        └─ v ────────────────┘

    With `qk_norm`, q_norm and k_norm stand before rotate_q and rotate_k, or after them; with `gate`, its
    columns are of the product, too, and parted from it before `heads`.
    """
    rotary = body.rotary or b.config.rotary()
    q, k, v = _heads(b, x, body, rotary)
    norm = body.qk_norm
    if norm and not norm.last:
        q, k = (_head_norm(b, part, x, body, norm, rotary) for part, x in (("q", q), ("k", k)))
    if body.turned:
        tables = b.rotary(rotary)
        q, k = (b.emit("Rotate", f"rotate_{part}", (x, *tables)) for part, x in (("q", q), ("k", k)))
    if norm and norm.last:
        q, k = (_head_norm(b, part, x, body, norm, rotary) for part, x in (("q", q), ("k", k)))
    past, present = b.state("key", "value")
    b.emit("Append", "append", (k, v, *past), present, state="float32")
    options, by_head = _options(b, body, rotary)
    y = b.emit("Attend", "attend", (q, *present, *by_head), (), **options)
    if body.gate:
        y = b.emit("OutputGate", "gated", (y, b.name("apart.gate")), act="sigmoid")
    out = b.affine("out", b.config.hidden_size, body.num_heads * body.head_size, bias=body.out_bias)
    return b.linear("out", y, out.each(lambda w: w.scaled(b.scale)))


def _options(b: Builder, body: Attention, rotary: Rotary) -> tuple[dict[str, Attribute], list[str]]:
    """Attributes of Attend, and constants of a number for each head."""
    options: dict[str, Attribute] = {"scale": _scale(body, rotary), "state": "float32"}
    by_head = []
    if body.window:
        options["window"] = body.window
    if body.softcap:
        options["softcap"] = body.softcap
    if body.sinks:
        options["sinks"] = 1
        by_head.append(b.constant(b.name("sinks"), b.weight("sinks", body.num_heads, kind="")))
    if body.slopes:
        options["slopes"] = 1
        by_head.append(b.name("slopes"))
        b.made.constants[by_head[-1]] = Tensor.of(np.array(body.slopes, np.float32))
    return options, by_head


def _heads(b: Builder, x: str, body: Attention, rotary: Rotary) -> tuple[str, str, str]:
    """One product for q, k and v, and its heads apart."""
    size, counts = body.head_size, {"q": body.num_heads, "k": body.kv_num_heads, "v": body.kv_num_heads}
    parts = {
        part: b.affine(part, count * size, b.config.hidden_size, bias=body.qkv_bias).reading(b.shift)
        for part, count in counts.items()
    }
    factors = np.ones(size) if body.qk_norm else _factors(rotary)
    for part in "qk":
        parts[part] = parts[part].each(functools.partial(_paired, rotary=rotary, factors=factors))
    qkv = _product(b, x, body, list(parts.values()))
    q, k, v = (b.name(f"heads.{part}") for part in "qkv")
    sizes = {"num_heads": body.num_heads, "kv_num_heads": body.kv_num_heads, "head_size": size}
    b.emit("Heads", "heads", (qkv,), (q, k, v), **sizes)
    return q, k, v


def _product(b: Builder, x: str, body: Attention, parts: list[Affine]) -> str:
    """q, k, v side by side; what gates the output stands in `apart.gate`."""
    if not body.gate:
        return b.linear("qkv", x, *parts)
    width = body.num_heads * body.head_size
    gates = {"columns": width, "heads": body.num_heads}[body.gate]
    gate = b.affine("gate", gates, b.config.hidden_size, bias=body.qkv_bias).reading(b.shift)
    sizes = {"qkv": width + 2 * body.kv_num_heads * body.head_size, "gate": gates}
    return b.parts("apart", b.linear("qkv", x, *parts, gate), sizes)[0]


def _head_norm(b: Builder, part: str, x: str, body: Attention, norm: QkNorm, rotary: Rotary) -> str:
    """A norm of the heads of queries or keys."""
    heads = {"q": body.num_heads, "k": body.kv_num_heads}[part] if norm.scope != "head" else 1
    name = f"{part}_norm"
    if norm.apart:
        kinds = [f".norms.{head}.weight" for head in range(heads)]
        weight = stack([b.weight(name, body.head_size, kind=kind) for kind in kinds])
    else:
        weight = b.weight(name, heads * body.head_size) if norm.weighted else ones(body.head_size)
    if norm.plus_one and not b.source.gguf:  # whose converters have added it
        weight = weight.plus(1)
    factors = np.ones(body.head_size) if norm.last else _factors(rotary)  # the norm takes any factor away
    constant = b.constant(f"{b.name(name)}.weight", _paired(weight, rotary, factors))
    options: dict[str, Attribute] = {"epsilon": b.config.epsilon}
    if norm.centered:
        options["centered"] = 1
    if norm.scope != "head":
        options["scope"] = norm.scope
    return b.emit("HeadNorm", name, (x, constant), (), **options)


def _paired(weight: Weight, rotary: Rotary, factors: np.ndarray) -> Weight:
    """Rows of one or many heads in the order in which `Rotate` pairs them, each times its factor."""
    size = len(factors)
    heads = weight.shape[0] // size
    order = np.arange(heads)[:, None] * size + rotary.order()
    return weight.rows(order.reshape(-1)).scaled(np.tile(factors, heads))


def _factors(rotary: Rotary) -> np.ndarray:
    """What elements of a head are multiplied by [d], for a factor of cosines that only some of them get."""
    factors = rotary.factors()
    return factors if rotary.turning < len(factors) else np.ones(len(factors))


def _scale(body: Attention, rotary: Rotary) -> float:
    """Of the scores. A factor of cosines and sines is in them twice, where all of a head turns."""
    scale = body.head_size**-0.5 if body.scale is None else body.scale
    if body.qk_norm and body.qk_norm.last:
        return scale
    return scale * rotary.factor**2 if rotary.turning == body.head_size else scale
