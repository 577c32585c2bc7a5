"""Heads as integers in ONNX nodes, step for step `kernels_arm.reference.quantize_heads`."""

from __future__ import annotations

from flatlm.kernels_arm import reference

from .exp import literal


def quantized(x: str) -> str:
    """x [B, heads, T, d] → its integers, as float32, and scales [B, heads, T, 1], as quantize_heads."""
    return f"""
    {x}_sizes = Abs ({x})
    {x}_largest = ReduceMax <keepdims = 1> ({x}_sizes, infer)
    {x}_bound = Max ({x}_largest, floor)
    {x}_inverse = Div (head_levels, {x}_bound)
    {x}_steps = Mul ({x}, {x}_inverse)
    {x}_integers = Round ({x}_steps)
    {x}_scale = Div ({x}_bound, head_levels)
"""


CONSTANTS = {
    "floor": reference.FLOOR,
    "lowest": reference.LOWEST,
    "head_levels": reference.HEAD_LEVELS,
    "weight_levels": reference.WEIGHT_LEVELS,
    "sum_steps": reference.SUM_STEPS,
    "part_of_sum": reference.PART_OF_SUM,
}


def floats(*names: str) -> str:
    """The lines that make some of CONSTANTS."""
    return "\n".join(
        f"    {name} = Constant <value_float = {literal(float(CONSTANTS[name]))}> ()" for name in names
    )
