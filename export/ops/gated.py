"""Gated: an activation of one fused layer's first half, times its second half."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flatlm.export.onnx_text.exp import exp, literal
from flatlm.kernels_arm import reference
from flatlm.runtime.format.graph import Graph, Node

from .function import Channels, Env, Function, Operation

NAME = "Gated"


@dataclass(frozen=True, slots=True)
class _Act:
    """An activation, for the attribute `act`."""

    run: Callable[[np.ndarray], np.ndarray]  # gate → act(gate)
    slopes: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # gate, up → of act(gate) · up
    nodes: str  # `gate` → `active`, in ONNX


def _silu(gate: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # e^-gate may be inf, and the gate is then 0, as it should be
        active: np.ndarray = gate / (1 + np.exp(-gate))
    return active


def _silu_slopes(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-gate))
    return up * sigmoid * (1 + gate * (1 - sigmoid)), gate * sigmoid


_SILU = f"""
    minus_gate = Neg (gate)
{exp("minus_gate", "decay")}
    denominator = Add (exp_one, decay)
    active = Div (gate, denominator)"""


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


_GELU_TANH = f"""
    linear = Constant <value_float = {literal(float(reference.GELU_LINEAR))}> ()
    cubic = Constant <value_float = {literal(float(reference.GELU_CUBIC))}> ()
    square = Mul (gate, gate)
    cubic_part = Mul (cubic, square)
    factor = Add (linear, cubic_part)
    exponent = Mul (gate, factor)
{exp("exponent", "decay")}
    denominator = Add (exp_one, decay)
    active = Div (gate, denominator)"""

_ACTS = {
    "silu": _Act(_silu, _silu_slopes, _SILU),
    "gelu_tanh": _Act(_gelu_tanh, _gelu_tanh_slopes, _GELU_TANH),
}


def _act(node: Node) -> _Act:
    return _ACTS[str(node.attrs["act"])]


def operation(graph: Graph, node: Node) -> Operation:
    act = _act(node).run

    def gated(gate_up: np.ndarray) -> tuple[np.ndarray, ...]:
        gate, up = np.split(gate_up, 2, axis=-1)
        return (act(gate) * up,)

    return gated


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    slopes = _act(node).slopes(*np.split(env[node.inputs[0]], 2, axis=-1))
    return (np.concatenate([y * slope for slope in slopes], -1),)


def body(node: Node) -> str:
    return f"""<act> (gate_up) => (y) {{
    gate, up = Split <axis = -1, num_outputs = 2> (gate_up)
{_act(node).nodes}
    y = Mul (active, up)
}}"""


def origin(graph: Graph, node: Node, channels: Channels) -> Channels:
    """It is linear in up, the second half."""
    return Channels(node.inputs[0], channels.width + channels.index, 2 * channels.width)


def rows(node: Node, channel: np.ndarray, width: int) -> np.ndarray:
    return np.concatenate([channel, channel + width])


def parts(node: Node, count: int) -> list[slice]:
    return [slice(0, count // 2), slice(count // 2, count)]


GATED = Function(NAME, operation, backward, body, origin=origin, rows=rows, parts=parts, wide=2.5)
