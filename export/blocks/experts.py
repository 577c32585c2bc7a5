"""Mixtures of experts: weights of router, experts and what stands beside them → nodes.

Legend: B batch, T tokens, E experts, K of them a token, I intermediate size.
"""

from __future__ import annotations

import dataclasses

from flatlm.export.layers import Experts, Gated
from flatlm.export.weights import Affine, Weight, alternate, zeros
from flatlm.runtime.format.graph import Attribute

from .builder import Builder
from .mlp import gated


def experts(b: Builder, x: str, body: Experts) -> str:
    """The normed stream → what a token's experts add to it.

    x ─┬─ router [B, T, E] ─ route ─┬─ choice, shares [B, T, K] ─┬──────────────┐
       ├────────────────── experts.gate_up ─ act [B, T, K, I] ─ down ─ experts.sum ─┬─ sum
       └─ shared.gate_up ─ act ─ down ─ (gated) ────────────────────────────────────┘
    """
    assert b.shift is None, "experts cannot take in the bias of a norm"
    choice, shares = _route(b, x, body)
    within = dataclasses.replace(b, branch=f"{b.branch}experts.")
    gate_up = _gate_up(within, x, choice, body)
    if body.clamp:
        alpha, limit = body.clamp
        act = within.emit("ClampedGate", "act", (gate_up,), alpha=alpha, limit=limit)
    else:
        act = within.emit("Gated", "act", (gate_up,), act=body.act)
    hidden, wide = b.config.hidden_size, body.intermediate_size
    weight = within.of_experts("down", body.experts, hidden, wide).scaled(b.scale)
    bias = (
        within.of_experts("down", body.experts, hidden, kind=".bias").scaled(b.scale) if body.bias else None
    )
    down = _product(within, "down", act, choice, weight, bias)
    total = within.emit("ExpertSum", "sum", (down, choice, shares))
    return b.emit("Add", "sum", (total, _shared(b, x, body))) if body.shared else total


def _route(b: Builder, x: str, body: Experts) -> tuple[str, str]:
    router = b.affine("router", body.experts, b.config.hidden_size, bias=body.router_bias)
    inputs = [b.linear("router", x, router)]
    options: dict[str, Attribute] = {
        "normalize": int(body.normalize), "scale": body.scale, "floor": body.floor, "groups": body.groups,
        "keep": body.keep,
    }  # fmt: skip
    neutral = {"normalize": 0, "scale": 1.0, "floor": 0.0, "groups": 1, "keep": 1}
    attrs = {name: value for name, value in options.items() if value != neutral[name]}
    if body.select:
        select = b.weight("select", body.experts, kind="")
        inputs.append(b.constant(f"{b.name('route')}.select", select))
        attrs["selected"] = 1
    outputs = (f"{b.name('route')}.choice", f"{b.name('route')}.shares")
    b.emit("Route", "route", inputs, outputs, kind=body.kind, experts=body.experts, kept=body.kept, **attrs)
    return outputs


def _gate_up(b: Builder, x: str, choice: str, body: Experts) -> str:
    """One product for gate and up of an expert, outputs side by side."""
    count, wide, hidden = body.experts, body.intermediate_size, b.config.hidden_size
    parts = [b.of_experts(part, count, wide, hidden) for part in ("gate", "up")]
    bias = None
    if body.bias:
        of_gate, of_up = (b.of_experts(part, count, wide, kind=".bias") for part in ("gate", "up"))
        bias = alternate((of_gate, of_up.plus(1) if body.clamp else of_up))
    return _product(b, "gate_up", x, choice, alternate(parts), bias)


def _product(b: Builder, part: str, x: str, choice: str, weight: Weight, bias: Weight | None) -> str:
    name, (experts, n, _) = b.name(part), weight.shape
    constant = b.constant(f"{name}.weight", weight)
    shift = b.constant(f"{name}.bias", bias or zeros(experts * n).reshaped(experts, n))
    return b.emit("Experts", part, (x, constant, choice, shift))


def _shared(b: Builder, x: str, body: Experts) -> str:
    """The expert that all tokens go to; its share may be a sigmoid."""
    within = dataclasses.replace(b, branch=f"{b.branch}shared.")
    y = gated(within, x, Gated(body.act, body.shared))
    if not body.shared_gate:
        return y
    share = within.linear("share", x, Affine(within.weight("share", 1, b.config.hidden_size)))
    return within.emit("OutputGate", "gated", (y, share), act="sigmoid")
