"""The MLPs: weights → nodes.

Legend: B batch, T tokens, I intermediate size.
"""

from __future__ import annotations

from flatlm.export.layers import Gated

from .builder import Builder


def gated(b: Builder, x: str, body: Gated) -> str:
    """The normed stream → what a gated MLP adds to it.

    x ─ gate_up [B, T, 2·I] ─ act [B, T, I] ─ down
    """
    wide, hidden, bias = body.intermediate_size, b.config.hidden_size, body.bias
    parts = [b.affine(part, wide, hidden, bias=bias).reading(b.shift) for part in ("gate", "up")]
    act = b.emit("Gated", "act", (b.linear("gate_up", x, *parts),), act=body.act)
    down = b.affine("down", hidden, wide, bias=bias)
    return b.linear("down", act, down.each(lambda w: w.scaled(b.scale)))
