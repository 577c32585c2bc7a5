"""e^x, and the activations that are made of it, 16 lanes at a time."""

from __future__ import annotations

import numpy as np

from .jit import inlined
from .ops import GELU_TANH, SILU
from .reference import EXP_HIGH, EXP_LOW, EXP_POLYNOMIAL, GELU_CUBIC, GELU_LINEAR, LN2_HIGH, LN2_LOW, LOG2E
from .simd import (
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

ONE, ZERO = np.float32(1), np.float32(0)


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


@inlined
def gate_row(act, gates, ups, first, last, y):
    """y = act(gate) · up, columns first … last, step for step `reference.gated`; `act` is a code of ops.py.

    Lanes beyond the end of a row hold anything finite.
    """
    one, zero = splat_float(ONE), splat_float(ZERO)
    if act == SILU:
        for at in range(4 * first, 4 * last, 64):
            gate = load_floats(gates + at)
            store_floats(y + at, (gate / (one + exp16(zero - gate))) * load_floats(ups + at))
    elif act == GELU_TANH:
        linear, cubic = splat_float(GELU_LINEAR), splat_float(GELU_CUBIC)
        for at in range(4 * first, 4 * last, 64):
            gate = load_floats(gates + at)
            exponent = gate * (linear + cubic * (gate * gate))
            store_floats(y + at, (gate / (one + exp16(exponent))) * load_floats(ups + at))
