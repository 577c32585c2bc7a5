"""e^x, and the activations that are made of it, 16 lanes at a time."""

from __future__ import annotations

import numpy as np

from .jit import inlined, kernel
from .ops import GELU, GELU_TANH, RELU, RELU2, SIGMOID, SILU, XIELU
from .reference import (
    EXP_HIGH,
    EXP_LOW,
    EXP_POLYNOMIAL,
    GELU_CUBIC,
    GELU_LINEAR,
    GELU_NEAR,
    GELU_TAIL,
    LN2_HIGH,
    LN2_LOW,
    LOG2E,
    XIELU_NEAR,
)
from .simd import (
    get_f32,
    greater,
    load_floats,
    power_of_two,
    round_even,
    smaller,
    splat_float,
    store_floats,
    to_ints,
    zero_below,
)

ONE, ZERO, MINUS_HALF = np.float32(1), np.float32(0), np.float32(-0.5)
LEAST = np.float32(1e-45)  # above 0


@inlined
def exp16(x):
    """e^x of 16 lanes, step for step `reference.exp`."""
    low = splat_float(EXP_LOW)
    clipped = smaller(greater(x, low), splat_float(EXP_HIGH))
    n = round_even(clipped * splat_float(LOG2E))
    r = (clipped - n * splat_float(LN2_HIGH)) - n * splat_float(LN2_LOW)
    p = splat_float(EXP_POLYNOMIAL[0])
    p = p * r + splat_float(EXP_POLYNOMIAL[1])
    p = p * r + splat_float(EXP_POLYNOMIAL[2])
    p = p * r + splat_float(EXP_POLYNOMIAL[3])
    p = p * r + splat_float(EXP_POLYNOMIAL[4])
    p = p * r + splat_float(EXP_POLYNOMIAL[5])
    p = (p * (r * r) + r) + splat_float(ONE)
    return zero_below(p * power_of_two(to_ints(n)), x, low)


# ------------------------------------------------------------------------- each step for step the reference's
@inlined
def silu16(x):
    return x / (splat_float(ONE) + exp16(splat_float(ZERO) - x))


@inlined
def gelu_tanh16(x):
    exponent = x * (splat_float(GELU_LINEAR) + splat_float(GELU_CUBIC) * (x * x))
    return x / (splat_float(ONE) + exp16(exponent))


@inlined
def relu16(x):
    return greater(x, splat_float(ZERO))


@inlined
def relu2_16(x):
    positive = relu16(x)
    return positive * positive


@inlined
def gelu16(x):
    size, one = greater(x, splat_float(ZERO) - x), splat_float(ONE)
    t = one / (size * splat_float(GELU_NEAR) + one)
    tail = splat_float(GELU_TAIL[0])
    tail = tail * t + splat_float(GELU_TAIL[1])
    tail = tail * t + splat_float(GELU_TAIL[2])
    tail = tail * t + splat_float(GELU_TAIL[3])
    tail = tail * t + splat_float(GELU_TAIL[4])
    tail = tail * t + splat_float(GELU_TAIL[5])
    tail = tail * t + splat_float(GELU_TAIL[6])
    tail = tail * t + splat_float(GELU_TAIL[7])
    return relu16(x) - size * ((tail * t) * exp16((x * x) * splat_float(MINUS_HALF)))


@inlined
def sigmoid16(x):
    one = splat_float(ONE)
    return one / (one + exp16(splat_float(ZERO) - x))


@inlined
def xielu16(x, floats):
    """floats: address of float32 [positive, negative, linear]."""
    zero, one = splat_float(ZERO), splat_float(ONE)
    part = x * splat_float(get_f32(floats + 8))
    above = (x * splat_float(get_f32(floats))) * x + part
    grown = exp16(smaller(x, splat_float(XIELU_NEAR))) - one
    below = (grown - x) * splat_float(get_f32(floats + 4)) + part
    return zero_below(above, x, splat_float(LEAST)) + zero_below(below, zero - x, zero)


def _loops(act16):
    """Of a row, columns first … last: the activation, and the activation times another row."""

    @inlined
    def act(x, first, last, y):
        for at in range(4 * first, 4 * last, 64):
            store_floats(y + at, act16(load_floats(x + at)))

    @inlined
    def gate(gates, ups, first, last, y):
        for at in range(4 * first, 4 * last, 64):
            store_floats(y + at, act16(load_floats(gates + at)) * load_floats(ups + at))

    return act, gate


_act_silu, _gate_silu = _loops(silu16)
_act_gelu_tanh, _gate_gelu_tanh = _loops(gelu_tanh16)
_act_gelu, _gate_gelu = _loops(gelu16)
_act_relu, _gate_relu = _loops(relu16)
_act_relu2, _gate_relu2 = _loops(relu2_16)
_act_sigmoid, _gate_sigmoid = _loops(sigmoid16)


@inlined
def _act_xielu(x, first, last, y, floats):
    for at in range(4 * first, 4 * last, 64):
        store_floats(y + at, xielu16(load_floats(x + at), floats))


@kernel
def act_row(act, x, first, last, y, floats):
    """y = act(x), columns first … last; `act` is a code of ops.py, `floats` the address of its numbers.

    Lanes beyond the end of a row hold anything finite.
    """
    if act == SILU:
        _act_silu(x, first, last, y)
    elif act == GELU_TANH:
        _act_gelu_tanh(x, first, last, y)
    elif act == GELU:
        _act_gelu(x, first, last, y)
    elif act == RELU:
        _act_relu(x, first, last, y)
    elif act == RELU2:
        _act_relu2(x, first, last, y)
    elif act == SIGMOID:
        _act_sigmoid(x, first, last, y)
    elif act == XIELU:
        _act_xielu(x, first, last, y, floats)


@kernel
def gate_row(act, gates, ups, first, last, y):
    """y = act(gate) · up, the same way."""
    if act == SILU:
        _gate_silu(gates, ups, first, last, y)
    elif act == GELU_TANH:
        _gate_gelu_tanh(gates, ups, first, last, y)
    elif act == GELU:
        _gate_gelu(gates, ups, first, last, y)
    elif act == RELU:
        _gate_relu(gates, ups, first, last, y)
    elif act == RELU2:
        _gate_relu2(gates, ups, first, last, y)
    elif act == SIGMOID:
        _gate_sigmoid(gates, ups, first, last, y)


@kernel
def clamped_row(gates, ups, first, last, y, floats):
    """y = act(gate) · up, as `expert_reference.clamped_gate`; floats: address of its four `clamps`."""
    minus_alpha, most = splat_float(get_f32(floats)), splat_float(get_f32(floats + 4))
    low, high = splat_float(get_f32(floats + 8)), splat_float(get_f32(floats + 12))
    for at in range(4 * first, 4 * last, 64):
        gate = smaller(load_floats(gates + at), most)
        active = gate / (splat_float(ONE) + exp16(gate * minus_alpha))
        store_floats(y + at, active * smaller(greater(load_floats(ups + at), low), high))
