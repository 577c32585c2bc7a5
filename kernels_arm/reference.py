"""Every operation in plain numpy: the specification that the kernels equal bit for bit.

Integers are exact. Floats are reproducible anywhere because of two rules: element by element, every
operation is one rounding in float32 (multiply and add never fused); and every sum is taken in float64, whose
products of float32 are exact, and rounded to float32 once. The order of such a sum touches only bits that
the rounding drops (but for about one in 10^7), so kernels, numpy and onnxruntime agree on every bit, on any
machine, batch and number of threads.

Legend: m tokens, n outputs, k inputs, h heads, g key/value heads, d head size, t keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

DIGIT = 128  # X = 128·H + L, L in [−64, 63], for channels whose limit exceeds one int8

FLOOR = np.float32(1e-30)  # of a largest magnitude: what is smaller counts as zero

# exp: 2^n · p(r), |r| ≤ ln2/2; minimax coefficients of Cephes expf (S. Moshier), error < 2 ulp
EXP_LOW, EXP_HIGH = np.float32(-87.0), np.float32(88.0)
LOG2E = np.float32(1.44269504088896341)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
EXP_POLYNOMIAL = tuple(
    np.float32(c)
    for c in (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
)


def exp(x: np.ndarray) -> np.ndarray:
    """e^x in float32; 0 below −87, e^88 above 88."""
    x = np.asarray(x, np.float32)
    clipped = np.minimum(np.maximum(x, EXP_LOW), EXP_HIGH)
    n = np.rint(clipped * LOG2E)
    r = (clipped - n * LN2_HIGH) - n * LN2_LOW
    p = np.full_like(r, EXP_POLYNOMIAL[0])
    for c in EXP_POLYNOMIAL[1:]:
        p = p * r + c
    p = (p * (r * r) + r) + np.float32(1)
    power = ((n.astype(np.int32) + 127) << 23).view(np.float32)
    return np.where(x < EXP_LOW, np.float32(0), p * power)


def embedding(ids: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """ids [m], weights int8 [V, k], scale [V] → float32 [m, k]."""
    return weights[ids].astype(np.float32) * scale[ids, None]


def norm(x: np.ndarray, weight: np.ndarray, epsilon: float, centered: bool = False) -> np.ndarray:
    """Root-mean-square norm over the last axis, of x or of x − its mean. [m, k] → [m, k]."""
    if centered:
        x = x - (x.sum(-1, dtype=np.float64, keepdims=True) / x.shape[-1]).astype(np.float32)
    squares = np.square(x, dtype=np.float64).sum(-1, keepdims=True)
    inverse = 1 / np.sqrt(squares / x.shape[-1] + np.float64(np.float32(epsilon)))
    return (x * inverse.astype(np.float32)) * weight


def quantize(x: np.ndarray, inverse_scale: np.float32, limit: np.ndarray) -> np.ndarray:
    """float32 [m, k] → int32 X [m, k], clipped to ±limit per channel."""
    steps = np.rint(x * np.float32(inverse_scale))
    bound = limit.astype(np.float32)
    return np.minimum(np.maximum(steps, -bound), bound).astype(np.int32)


def quantize_token(x: np.ndarray, limit: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [m, k] → int32 X [m, k] and float32 [m], each token's step: the least for which |X| ≤ limit.

    limit is levels times the pieces of each channel.
    """
    most = np.float32(levels)
    largest = np.maximum((np.abs(x) * (most / limit.astype(np.float32))).max(-1), FLOOR)
    return np.rint(x * (most / largest)[:, None]).astype(np.int32), largest / most


def digits(x: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """X int32 [m, k] → (low, high) int8 with X = 128·high + low; high is 0 where limit ≤ 127."""
    high = np.where(limit > 127, (x + DIGIT // 2) >> 7, 0)
    return (x - DIGIT * high).astype(np.int8), high.astype(np.int8)


def integer_product(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """X int32 [m, k] · W int8 [n, k]ᵀ → int32 [m, n], exactly, by the plain definition."""
    return (x.astype(np.int64) @ weights.astype(np.int64).T).astype(np.int32)


def scale_product(
    acc: np.ndarray, scale: np.ndarray, bias: np.ndarray, step: np.ndarray | None = None
) -> np.ndarray:
    """int32 [m, n] → float32 [m, n]; step [m] where each token has its own."""
    y = acc.astype(np.float32) * scale
    if step is not None:
        y *= step[:, None]
    return y + bias


def rotary_table(positions: np.ndarray, inverse_frequency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """positions [m] → cos, sin float32 [m, d/2]."""
    angle = positions[:, None].astype(np.float64) * inverse_frequency.astype(np.float64)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary embedding over halves. x [m, h, d], cos and sin [m, d/2] → [m, h, d]."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def soft_cap(x: np.ndarray, cap: float) -> np.ndarray:
    """cap · tanh(x / cap), as cap − 2·cap / (1 + e^(x · 2/cap))."""
    most, two = np.float32(cap), np.float32(2)
    y: np.ndarray = most - (two * most) / (np.float32(1) + exp(x * (two / most)))
    return y


@dataclass(frozen=True, slots=True)
class Scores:
    """What is done to attention's scores before the softmax, in this order; and the softmax's sinks."""

    softcap: float = 0.0  # `soft_cap`; 0: none
    slopes: np.ndarray | None = None  # float32 [h]: score + slope · (key's position − query's), ALiBi
    sinks: np.ndarray | None = None  # float32 [h]: a score of each head that has no value

    def applied(self, scores: np.ndarray, m: int, window: int) -> np.ndarray:
        """[g, h/g · m, t], rows of the last m positions; −∞ where they see none."""
        groups, rows, t = scores.shape
        if self.softcap:
            scores = soft_cap(scores, self.softcap)
        if self.slopes is not None:
            distance = (np.arange(t) - (np.arange(m) + t - m)[:, None]).astype(np.float32)
            scores = scores + (self.slopes[:, None, None] * distance).reshape(groups, rows, t)
        seen = np.tile(visible(m, t, window), (rows // m, 1))
        return np.where(seen, scores, np.float32(-np.inf))

    def sinks_of(self, groups: int, m: int) -> np.ndarray:
        """For each row [g, h/g · m, 1]; −∞ without any."""
        if self.sinks is None:
            return np.full((groups, 1, 1), np.float32(-np.inf))
        return np.repeat(self.sinks, m).reshape(groups, -1, 1)


PLAIN_SCORES = Scores()


def visible(m: int, t: int, window: int) -> np.ndarray:
    """Which of t positions each of the last m sees, bool [m, t]: none after it, `window` in all (0: any)."""
    before = (np.arange(m) + t - m)[:, None] - np.arange(t)
    return (before >= 0) & (before < (window or t))


def attention(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    scale: float,
    window: int = 0,
    options: Scores = PLAIN_SCORES,
) -> np.ndarray:
    """Causal attention of the last m of t positions. q [m, h, d], keys and values [t, g, d] → [m, h, d].

    window: positions that a query sees, its own included; 0: all before it.
    """
    m, heads, size = q.shape
    groups = keys.shape[1]
    q = q.reshape(m, groups, heads // groups, size).transpose(1, 2, 0, 3).reshape(groups, -1, size)
    products = q.astype(np.float64) @ keys.transpose(1, 2, 0).astype(np.float64)  # [g, h/g · m, t]
    scores = options.applied(products.astype(np.float32) * np.float32(scale), m, window)
    sinks = options.sinks_of(groups, m)
    largest = np.maximum(scores.max(-1, keepdims=True), sinks)
    weights = exp(scores - largest).astype(np.float64)
    out = (weights @ values.transpose(1, 0, 2).astype(np.float64)).astype(np.float32)
    total = weights.sum(-1, keepdims=True) + exp(sinks - largest).astype(np.float64)
    out *= (1 / total).astype(np.float32)
    return out.reshape(groups, heads // groups, m, size).transpose(2, 0, 1, 3).reshape(m, heads, size)


# ---- attention over an int8 cache
HEAD_LEVELS = np.float32(127)
WEIGHT_LEVELS = np.float32(128 * 127 + 127)  # a weight is two digits of 0 … 127
SUM_STEPS, PART_OF_SUM = (
    np.float32(2.0**22),
    np.float32(2.0**-22),
)  # a block's sum of weights stays below 2^31
LOWEST = np.float32(-1e30)  # of a block's largest score: a block that a row does not see has it
KV_BLOCK = 256  # positions, counted from 0


def quantize_heads(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [..., d] → int8 [..., d] and their scales float32 [...]."""
    largest = np.maximum(np.abs(x).max(-1), FLOOR)
    steps = np.rint(x * (HEAD_LEVELS / largest)[..., None])
    return steps.astype(np.int8), largest / HEAD_LEVELS


def attention_int8(
    q: np.ndarray,
    keys: np.ndarray,
    key_scale: np.ndarray,
    values: np.ndarray,
    value_scale: np.ndarray,
    scale: float,
    window: int = 0,
    options: Scores = PLAIN_SCORES,
) -> np.ndarray:
    """As `attention`; keys and values int8 [t, g, d] with scales [t, g], in integers but for the softmax.

    Positions are cut into blocks of 256. Within one, weights are e^(score − the block's maximum), times the
    values' scales, in integers of one step; blocks are joined by e^(maximum − the largest maximum).
    """
    m, heads, size = q.shape
    t, groups, _ = keys.shape
    blocks = -(-t // KV_BLOCK)
    rows, row_scale = quantize_heads(q)
    rows = rows.reshape(m, groups, heads // groups, size).transpose(1, 2, 0, 3).reshape(groups, -1, size)
    factor = (row_scale * np.float32(scale)).reshape(m, groups, -1).transpose(1, 2, 0).reshape(groups, -1, 1)
    products = (rows.astype(np.float64) @ keys.transpose(1, 2, 0).astype(np.float64)).astype(np.float32)
    scores = options.applied((products * key_scale.T[:, None]) * factor, m, window)
    scores = _blocks(scores, blocks, np.float32(-np.inf))  # [g, h/g · m, blocks, 256]
    maxima = np.maximum(scores.max(-1), LOWEST)
    weights = exp(scores - maxima[..., None])
    sums = np.rint(weights * SUM_STEPS).sum(-1, dtype=np.float64).astype(np.float32) * PART_OF_SUM
    weights = weights * _blocks(value_scale.T[:, None], blocks, np.float32(0))
    peak = np.maximum(weights.max(-1), FLOOR)
    steps = np.rint(weights * (WEIGHT_LEVELS / peak)[..., None]).astype(np.float64).transpose(0, 2, 1, 3)
    padded = np.zeros((groups, blocks * KV_BLOCK, size))
    padded[:, :t] = values.transpose(1, 0, 2)
    acc = steps @ padded.reshape(groups, blocks, KV_BLOCK, size)  # [g, blocks, h/g · m, d]
    parts = acc.transpose(0, 2, 1, 3).astype(np.float32) * (peak / WEIGHT_LEVELS)[..., None]
    sinks = options.sinks_of(groups, m)
    largest = np.maximum(maxima.max(-1, keepdims=True), sinks)
    shares = exp(maxima - largest).astype(np.float64)
    out = (shares[..., None] * parts).sum(2).astype(np.float32)
    total = (shares * sums).sum(-1, keepdims=True) + exp(sinks - largest).astype(np.float64)
    out *= (1 / total).astype(np.float32)
    return out.reshape(groups, heads // groups, m, size).transpose(2, 0, 1, 3).reshape(m, heads, size)


def _blocks(x: np.ndarray, blocks: int, beyond: np.float32) -> np.ndarray:
    """[..., t] → [..., blocks, 256], filled up with `beyond`."""
    padded = np.full((*x.shape[:-1], blocks * KV_BLOCK), beyond)
    padded[..., : x.shape[-1]] = x
    return padded.reshape(*x.shape[:-1], blocks, KV_BLOCK)


# ---- activations
def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + e^−x)."""
    y: np.ndarray = x / (np.float32(1) + exp(-x))
    return y


# 0.5 · (1 + tanh z) = 1 / (1 + e^−2z): −2z = x · (GELU_LINEAR + GELU_CUBIC · x²)
GELU_LINEAR = np.float32(-2 * math.sqrt(2 / math.pi))
GELU_CUBIC = np.float32(-2 * math.sqrt(2 / math.pi) * 0.044715)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """0.5 · x · (1 + tanh z) with z = √(2/π) · (x + 0.044715 · x³), as x / (1 + e^−2z)."""
    with np.errstate(over="ignore"):  # x² may be inf: e^−2z then is 0 or e^88
        exponent = x * (GELU_LINEAR + GELU_CUBIC * (x * x))
    y: np.ndarray = x / (np.float32(1) + exp(exponent))
    return y


# 0.5 · (1 + erf(x / √2)) of −|x| is e^(−x²/2) · Σ GELU_TAIL[i] · t^(8 − i) with
# t = 1 / (1 + GELU_NEAR · |x|); fitted to 0.5 · erfcx(|x| / √2) up to |x| = 13.2, relative error < 1.3e-7
GELU_NEAR = np.float32(0.3)
GELU_TAIL = tuple(
    np.float32(c)
    for c in (
        0.03609192802076661,
        -0.15894707456099927,
        0.2093701357007697,
        -0.05647258565599771,
        0.13004482126101632,
        0.099461282582095,
        0.12082693257139751,
        0.11962449990695743,
    )
)


def gelu(x: np.ndarray) -> np.ndarray:
    """0.5 · x · (1 + erf(x / √2)), as max(x, 0) − |x| · its tail."""
    size = np.abs(x)
    t = np.float32(1) / (size * GELU_NEAR + np.float32(1))
    tail = np.full_like(t, GELU_TAIL[0])
    for c in GELU_TAIL[1:]:
        tail = tail * t + c
    with np.errstate(over="ignore"):  # x² may be inf: e^−inf is 0
        decay = exp((x * x) * np.float32(-0.5))
    y: np.ndarray = relu(x) - size * ((tail * t) * decay)
    return y


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0)."""
    return np.maximum(x, np.float32(0))


def relu2(x: np.ndarray) -> np.ndarray:
    """max(x, 0)²."""
    with np.errstate(over="ignore"):
        return relu(x) * relu(x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−x)."""
    y: np.ndarray = np.float32(1) / (np.float32(1) + exp(-x))
    return y


ACTS = {
    "silu": silu, "gelu_tanh": gelu_tanh, "gelu": gelu, "relu": relu, "relu2": relu2, "sigmoid": sigmoid
}  # fmt: skip


XIELU_NEAR = np.float32(-1e-6)


def xielu(x: np.ndarray, positive: float, negative: float, linear: float) -> np.ndarray:
    """positive · x² + linear · x above 0, negative · (e^min(x, −10⁻⁶) − 1 − x) + linear · x below
    (Huang and Schlag, arXiv 2411.13010).
    """
    part, one = x * np.float32(linear), np.float32(1)
    with np.errstate(over="ignore"):
        above = (x * np.float32(positive)) * x + part
    below = ((exp(np.minimum(x, XIELU_NEAR)) - one) - x) * np.float32(negative) + part
    return np.where(x > 0, above, below)


PLAIN_ACTS: Mapping[str, Callable[..., np.ndarray]] = {**ACTS, "xielu": xielu}


def gated(gate_up: np.ndarray, act: str) -> np.ndarray:
    """[m, 2·I] → [m, I]: act(gate) · up."""
    gate, up = np.split(gate_up, 2, axis=-1)
    return ACTS[act](gate) * up


def output_gate(x: np.ndarray, gate: np.ndarray, act: str) -> np.ndarray:
    """x [m, k] · act(gate [m, n]), n a divisor of k: each column of the gate is for k/n of x side by side."""
    return np.repeat(ACTS[act](gate), x.shape[-1] // gate.shape[-1], axis=-1) * x
