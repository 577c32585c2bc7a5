"""Activations: what Gated, Activation and OutputGate apply to each element, by their attribute `act`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flatlm.export.onnx_text.exp import exp, literal
from flatlm.kernels_arm import reference
from flatlm.runtime.format.graph import Node


@dataclass(frozen=True, slots=True)
class Act:
    """An activation. Slopes are of act(gate) · up, by gate and by up."""

    run: Callable[[np.ndarray], np.ndarray]  # gate → act(gate)
    slopes: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # gate, up →
    nodes: Callable[[str, str], str]  # names x, y → lines of a body for y = act(x)
    power: int = 0  # p where act(s · x) = s^p · act(x) for every s > 0; 0: there is none

    def slope(self, x: np.ndarray) -> np.ndarray:
        """Of act(x)."""
        return self.slopes(x, np.ones((), x.dtype))[0]


def act_of(node: Node) -> Act:
    return ACTS[str(node.attrs["act"])]


# ------------------------------------------------------------------------------------- made of e^x alone
def _silu(gate: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # e^-gate may be inf, and the gate is then 0, as it should be
        active: np.ndarray = gate / (1 + np.exp(-gate))
    return active


def _sigmoid(gate: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        active: np.ndarray = 1 / (1 + np.exp(-gate))
    return active


def _silu_slopes(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sigmoid = _sigmoid(gate)
    return up * sigmoid * (1 + gate * (1 - sigmoid)), gate * sigmoid


def _sigmoid_slopes(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sigmoid = _sigmoid(gate)
    return up * sigmoid * (1 - sigmoid), sigmoid


def _silu_nodes(x: str, y: str) -> str:
    return f"""
    minus_{x} = Neg ({x})
{exp(f"minus_{x}", "decay")}
    denominator = Add (exp_one, decay)
    {y} = Div ({x}, denominator)"""


def _sigmoid_nodes(x: str, y: str) -> str:
    return f"""
    minus_{x} = Neg ({x})
{exp(f"minus_{x}", "decay")}
    denominator = Add (exp_one, decay)
    {y} = Reciprocal (denominator)"""  # onnxruntime makes u / d of u · (1 / d) where that is a Div


# --------------------------------------------------------------------------------- GELU, by tanh and by erf
def _gelu_tanh(gate: np.ndarray) -> np.ndarray:
    z, _ = _gelu_z(gate)
    active: np.ndarray = 0.5 * gate * (1 + np.tanh(z))
    return active


def _gelu_tanh_slopes(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z, slope = _gelu_z(gate)
    half = 0.5 * (1 + np.tanh(z))
    return up * (half + gate * 2 * half * (1 - half) * slope), gate * half


def _gelu_z(gate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What tanh is of, and its slope."""
    linear, cubic = reference.GELU_LINEAR / -2, reference.GELU_CUBIC / -2
    return gate * (linear + cubic * gate**2), linear + 3 * cubic * gate**2


def _gelu_tanh_nodes(x: str, y: str) -> str:
    return f"""
    linear = Constant <value_float = {literal(float(reference.GELU_LINEAR))}> ()
    cubic = Constant <value_float = {literal(float(reference.GELU_CUBIC))}> ()
    square = Mul ({x}, {x})
    cubic_part = Mul (cubic, square)
    factor = Add (linear, cubic_part)
    exponent = Mul ({x}, factor)
{exp("exponent", "decay")}
    denominator = Add (exp_one, decay)
    {y} = Div ({x}, denominator)"""


def _gelu(gate: np.ndarray) -> np.ndarray:
    """There is no erf in numpy."""
    return reference.gelu(gate).astype(gate.dtype, copy=False)


def _gelu_slopes(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    active = _gelu(gate)
    density = np.exp(-0.5 * np.square(gate)) * np.asarray(1 / math.sqrt(2 * math.pi), gate.dtype)
    share = np.divide(active, gate, out=np.full_like(gate, 0.5), where=gate != 0)
    return up * (share + gate * density), active


def _gelu_nodes(x: str, y: str) -> str:
    first, *others = map(float, reference.GELU_TAIL)
    lines = [f"tail_0 = Constant <value_float = {literal(first)}> ()"]
    for i, c in enumerate(others, 1):
        lines += [
            f"tail_c{i} = Constant <value_float = {literal(c)}> ()",
            f"tail_m{i} = Mul (tail_{i - 1}, t)",
            f"tail_{i} = Add (tail_m{i}, tail_c{i})",
        ]
    polynomial = "\n".join("    " + line for line in lines)
    return f"""
    near = Constant <value_float = {literal(float(reference.GELU_NEAR))}> ()
    minus_half = Constant <value_float = -0.5> ()
    square = Mul ({x}, {x})
    exponent = Mul (square, minus_half)
{exp("exponent", "decay")}
    size = Abs ({x})
    scaled_size = Mul (size, near)
    denominator = Add (scaled_size, exp_one)
    t = Div (exp_one, denominator)
{polynomial}
    tail = Mul (tail_{len(others)}, t)
    decayed = Mul (tail, decay)
    taken = Mul (size, decayed)
    positive = Max ({x}, exp_zero)
    {y} = Sub (positive, taken)"""


# -------------------------------------------------------------------------------------------- without e^x
def _relu(gate: np.ndarray) -> np.ndarray:
    active: np.ndarray = np.maximum(gate, 0)
    return active


def _relu_slopes(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return up * (gate > 0), _relu(gate)


def _relu2(gate: np.ndarray) -> np.ndarray:
    active: np.ndarray = np.square(_relu(gate))
    return active


def _relu2_slopes(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return up * (2 * _relu(gate)), _relu2(gate)


def _relu_nodes(x: str, y: str) -> str:
    return f"""
    nothing = Constant <value_float = 0.0> ()
    {y} = Max ({x}, nothing)"""


def _relu2_nodes(x: str, y: str) -> str:
    return f"""{_relu_nodes(x, "positive")}
    {y} = Mul (positive, positive)"""


ACTS = {
    "silu": Act(_silu, _silu_slopes, _silu_nodes),
    "gelu_tanh": Act(_gelu_tanh, _gelu_tanh_slopes, _gelu_tanh_nodes),
    "gelu": Act(_gelu, _gelu_slopes, _gelu_nodes),
    "relu": Act(_relu, _relu_slopes, _relu_nodes, power=1),
    "relu2": Act(_relu2, _relu2_slopes, _relu2_nodes, power=2),
    "sigmoid": Act(_sigmoid, _sigmoid_slopes, _sigmoid_nodes),
}
