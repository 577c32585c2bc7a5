"""xIELU, an activation with numbers of its own: a parabola above 0, an exponential below."""

from __future__ import annotations

import numpy as np

from flatlm.export.onnx_text.exp import exp, literal
from flatlm.kernels_arm import reference

from .acts import Act


def xielu(positive: float, negative: float, linear: float) -> Act:
    """As `reference.xielu`."""
    near = float(reference.XIELU_NEAR)

    def run(x: np.ndarray) -> np.ndarray:
        below = negative * (np.expm1(np.minimum(x, near)) - x)
        y: np.ndarray = np.where(x > 0, positive * x * x, below) + linear * x
        return y.astype(x.dtype, copy=False)

    def slopes(x: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        below = negative * (np.exp(np.minimum(x, near)) * (x < near) - 1)
        slope = np.where(x > 0, 2 * positive * x, below) + linear
        return (up * slope).astype(x.dtype, copy=False), run(x)

    return Act(run, slopes, _nodes)


def _nodes(x: str, y: str) -> str:
    return f"""
    positive = Constant <value_float: float = @positive> ()
    negative = Constant <value_float: float = @negative> ()
    linear = Constant <value_float: float = @linear> ()
    near = Constant <value_float = {literal(float(reference.XIELU_NEAR))}> ()
    part = Mul ({x}, linear)
    curved = Mul ({x}, positive)
    parabola = Mul (curved, {x})
    above = Add (parabola, part)
    at_most = Min ({x}, near)
{exp("at_most", "growth")}
    grown = Sub (growth, exp_one)
    missing = Sub (grown, {x})
    bent = Mul (missing, negative)
    below = Add (bent, part)
    is_above = Greater ({x}, exp_zero)
    {y} = Where (is_above, above, below)"""
