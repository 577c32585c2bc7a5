"""Activations in a step of each token in ONNX nodes: rows → integers `whole_x`, and `step` [.., 1]"""

from __future__ import annotations

from flatlm.export.onnx_text.exp import literal
from flatlm.kernels_arm.reference import FLOOR


def in_steps(x: str) -> str:
    """Lines of a body: rows x, their `limit`, `most` levels and `last` axis → `whole_x` and `step`."""
    return f"""
    share = Div (most, limit)
    size = Abs ({x})
    reach = Mul (size, share)
    reached = ReduceMax <keepdims = 1> (reach, last)
    least = Constant <value_float = {literal(float(FLOOR))}> ()
    largest = Max (reached, least)
    inverse_step = Div (most, largest)
    step = Div (largest, most)
    steps = Mul ({x}, inverse_step)
    whole_x = Round (steps)"""
