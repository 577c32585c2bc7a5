"""Rewrites of `--fast`: onnxruntime's own operators, which round in other places: not bit-exact.

Weights stay integers, with their scales; activations are float32 and not quantized. What a rewrite here does
not know, an option of a function that came later, stays exact.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm.layout import padded
from flatlm.runtime import ops

from . import exact
from .calls import Call, Rewrite

BLOCK = 32  # columns that share a scale in MatMulNBits; ours have one for the row, which is repeated


def product(call: Call) -> None:
    """FlatLinear and FlatLinearToken as MatMulNBits of 8 bits with zero point 128, the operator's default."""
    roles, totals = ops.named(call.node), call.graph.totals(call.node)
    scale = call.graph.array(roles["scale"])
    if "inverse_scale" in roles:  # the scale is that of weight and activations together
        scale = scale * call.graph.array(roles["inverse_scale"])
    rows, columns = totals.shape
    blocks = padded(columns, BLOCK) // BLOCK
    matrix = np.full((rows, blocks * BLOCK), 128, np.uint8)
    matrix[:, :columns] = totals.view(np.uint8) ^ np.uint8(128)
    call.give("blocks", matrix.reshape(rows, blocks, BLOCK))
    call.give("block_scales", np.repeat(scale.astype(np.float32)[:, None], blocks, 1))
    sizes = f"K = {columns}, N = {rows}, bits = 8, block_size = {BLOCK}"
    call.rewrite(f"""
        product = com.microsoft.MatMulNBits <{sizes}> (x, blocks, block_scales)
        y = Add (product, bias)
    """)
    call.kind = f"{rows}x{columns}"


def norm(call: Call) -> None:
    call.rewrite("y = RMSNormalization <axis = -1, epsilon: float = @epsilon> (x, weight)")


_ACTS = {
    "silu": "share = Sigmoid (gate)\nactive = Mul (gate, share)",
    "gelu_tanh": 'active = Gelu <approximate = "tanh"> (gate)',
}


def gated(call: Call) -> None:
    act = _ACTS.get(str(call.node.attrs["act"]))
    if act is not None:
        call.replace(["active"], act)


def rotate(call: Call) -> None:
    if len(call.inputs) == 3 and not call.node.attrs:
        call.rewrite("y = RotaryEmbedding (x, cos, sin)")


def attend(call: Call) -> None:
    """With the mask of the exact plan: what is_causal means beside a cache, providers do not agree on."""
    exact.attend(call)
    if set(call.node.attrs) <= {"scale", "state", "window"}:
        keys, values = map(_floats, ("present_key", "present_value"), (call, call))
        call.replace(
            ["y"],
            f"""
            {keys}
            {values}
            out = Attention <scale: float = @scale> (q, present_key_float, present_value_float, mask)
            tokens_first = Transpose <perm = [0, 2, 1, 3]> (out)
            flat = Constant <value_ints = [0, 0, -1]> ()
            y = Reshape (tokens_first, flat)
        """,
        )


def _floats(cache: str, call: Call) -> str:
    """Lines that make a part of the cache float32."""
    if f"{cache}_scale" not in call.inputs:
        return f"{cache}_float = Identity ({cache})"
    return f"{cache}_whole = Cast <to = 1> ({cache})\n{cache}_float = Mul ({cache}_whole, {cache}_scale)"


FAST: Mapping[str, Rewrite] = {
    **exact.REWRITES,
    "FlatLinear": product,
    "FlatLinearToken": product,
    "Norm": norm,
    "HeadNorm": norm,
    "Gated": gated,
    "Rotate": rotate,
    "Attend": attend,
}
