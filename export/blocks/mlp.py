"""The MLPs: weights → nodes.

Legend: B batch, T tokens, I intermediate size.
"""

from __future__ import annotations

import numpy as np

from flatlm.export.layers import Gated, Plain
from flatlm.runtime.format.graph import Attribute

from .builder import Builder


def gated(b: Builder, x: str, body: Gated) -> str:
    """The normed stream → what a gated MLP adds to it.

    x ─ gate_up [B, T, 2·I] ─ act [B, T, I] ─ down
    """
    wide, hidden, bias = body.intermediate_size, b.config.hidden_size, body.bias
    gate, up = (b.affine(part, wide, hidden, bias=bias).reading(b.shift) for part in ("gate", "up"))
    gate = gate.each(lambda w: w.scaled(body.gate_scale))
    act = b.emit("Gated", "act", (b.linear("gate_up", x, gate, up),), act=body.act)
    down = b.affine("down", hidden, wide, bias=bias)
    return b.linear("down", act, down.each(lambda w: w.scaled(b.scale)))


def plain(b: Builder, x: str, body: Plain) -> str:
    """The normed stream → what an MLP without a gate adds to it.

    x ─ up [B, T, I] ─ act [B, T, I] ─ down
    """
    wide, hidden, bias = body.intermediate_size, b.config.hidden_size, body.bias
    up = b.affine("up", wide, hidden, bias=bias).reading(b.shift)
    numbers: dict[str, Attribute] = _xielu(b) if body.act == "xielu" else {}
    act = b.emit("Activation", "act", (b.linear("up", x, up),), (), act=body.act, **numbers)
    down = b.affine("down", hidden, wide, bias=bias)
    return b.linear("down", act, down.each(lambda w: w.scaled(b.scale)))


def _xielu(b: Builder) -> dict[str, Attribute]:
    """The numbers of a layer's xIELU: of its two curves the checkpoint has what softplus makes them of."""
    parts = ("alpha_p", "alpha_n", "beta", "eps")
    alpha_p, alpha_n, linear, _ = (float(b.stored(f"act.{part}", "").load().reshape(-1)[0]) for part in parts)
    positive, negative = np.logaddexp(0, (alpha_p, alpha_n)).tolist()
    return {"positive": positive, "negative": linear + negative, "linear": linear}
