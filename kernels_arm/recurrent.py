"""Short convolution and linear attention in plain numpy: what of `reference` looks back through a state.

A rounding that differs in a state stays in it. So sums are float32 here in an order that is written down, and
not float64 in any: elements one after another in groups of 16, then the groups one after another.

Legend: m tokens, c channels, L taps, h heads, j key heads, k columns of a key, v columns of a value.
"""

from __future__ import annotations

import numpy as np

from .reference import exp, silu

GROUP = 16  # elements that are summed one after another

# log(1 + e) = 2 · (s + s³/3 + s⁵/5 + …) with s = e / (2 + e) ≤ 1/3: nine terms are off by less than 1e-9
LOG_TERMS = tuple(np.float32(1 / (2 * i + 1)) for i in reversed(range(9)))
ONE, TWO = np.float32(1), np.float32(2)


def conv(history: np.ndarray, weight: np.ndarray, bias: np.ndarray, act: str = "") -> np.ndarray:
    """Depthwise causal convolution. history [L − 1 + m, c], weight [c, L], bias [c] → [m, c]."""
    taps = weight.shape[1]
    m = len(history) - taps + 1
    y = history[:m] * weight[:, 0]
    for i in range(1, taps):
        y = y + history[i : i + m] * weight[:, i]
    y = y + bias
    return silu(y) if act else y


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + e^x), one rounding an operation."""
    e = exp(-np.abs(x))
    s = e / (TWO + e)
    z = s * s
    p = np.full_like(z, LOG_TERMS[0])
    for term in LOG_TERMS[1:]:
        p = p * z + term
    y: np.ndarray = np.maximum(x, np.float32(0)) + (s + s) * p
    return y


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−x)."""
    y: np.ndarray = ONE / (ONE + exp(-x))
    return y


def in_groups(products: np.ndarray) -> np.ndarray:
    """The sum over the first axis, a multiple of 16 elements, in the order of this file: [k, …] → […]."""
    groups = products.reshape(-1, GROUP, *products.shape[1:])
    within = groups[:, 0]
    for i in range(1, GROUP):
        within = within + groups[:, i]
    return _in_order(within)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Σ a · b over the last axis, a multiple of 16: each of 16 lanes in order, then halves: […, k] → […]."""
    products = (a * b).reshape(*a.shape[:-1], -1, GROUP)
    lanes = _in_order(np.moveaxis(products, -2, 0))
    while lanes.shape[-1] > 1:
        first, second = np.split(lanes, 2, -1)
        lanes = first + second
    return lanes[..., 0]


def _in_order(parts: np.ndarray) -> np.ndarray:
    total: np.ndarray = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def whole_groups(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Zeros after the end of an axis, up to a multiple of 16."""
    width = [(0, 0)] * x.ndim
    width[axis] = (0, -x.shape[axis] % GROUP)
    return np.pad(x, width)


def gates(
    dt: np.ndarray, bias: np.ndarray, decay: np.ndarray, least: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Of each token and head: its step Δ = max(softplus(dt + bias), least), and e^(decay · Δ). All [m, h]."""
    step = np.maximum(softplus(dt + bias), np.float32(least))
    return step, exp(decay * step)


def linear_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    fade: np.ndarray,
    share: np.ndarray,
    state: np.ndarray,
    *,
    delta: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Attention through a matrix S for each head: q, k [m, j, k], v [m, h, v], state [h, k, v] → [m, h, v],
    and the state after them.

    With f = fade [m, h] and b = share [m, h], of each token, in order:

        u = b · (v − f · (k·S))   with the delta rule, else b · v
        y = f · (q·S) + (q·k) · u
        S = f · S + k ⊗ u
    """
    m, heads, width = v.shape
    repeats, size = heads // q.shape[1], q.shape[2]
    q, k = (whole_groups(np.repeat(x, repeats, 1)) for x in (q, k))
    state, same = whole_groups(state, 1), dot(q, k)
    out = np.empty((m, heads, width), np.float32)
    for t in range(m):
        f, b = fade[t][:, None], share[t][:, None]
        u = v[t]
        if delta:
            u = u - f * in_groups((k[t][..., None] * state).transpose(1, 0, 2))
        u = b * u
        out[t] = f * in_groups((q[t][..., None] * state).transpose(1, 0, 2)) + same[t][:, None] * u
        state = f[..., None] * state + k[t][..., None] * u[:, None]
    return out, state[:, :size]
